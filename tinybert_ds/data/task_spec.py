"""What a labelled task is: its files, columns, labels and metrics.

C classes. A task says where things are and what they are called; `task_files.py` reads them and `task_batches.py`
turns them into batches. Labels have names: a class id is a position in `label_names` and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

SEQUENCE_LENGTHS = {1: 64, 2: 128}
"""Default `max_seq_length` by number of texts in a row (arXiv 1909.10351, section 4.2)."""

_WHOLE_NUMBER = re.compile(r"^([+-]?\d+)\.0+$")

LABEL_COLUMNS = "labels"
"""What the columns are called, among `SplitFile.more_columns`, that together hold the label: one for each name."""

GROUPS = "group"
"""What the column is called, among the columns of rows, that says which rows, or words, belong together."""

PLACES = "places"
"""What the column is called, among those of rows, with the characters of its context that each answered token is."""

Column = str | int
"""A column by its name in the header, or by its 0-based position."""


@dataclass(frozen=True)
class TextFormat:
    """How the text files of a split are written, where their suffixes do not say it."""

    separator: str = ""  # between fields; "": a comma in .csv, else a tab
    encoding: str = ""  # "": UTF-8, with or without a byte-order mark
    quotes: bool | None = None  # whether fields may stand in quotation marks; None: in all files but tab-separated ones


@dataclass(frozen=True)
class SplitFile:
    """One split of a task: its file, or its files, and where its texts and labels are."""

    file: str  # or a pattern, or a directory of the `datasets` library
    texts: tuple[Column, ...]  # one column, or two for sentence pairs
    label: Column | None
    header: bool = True
    label_required: bool = True  # False: a file without the label column is read as unlabelled
    more_files: tuple[str, ...] = ()  # read behind the first one
    text_format: TextFormat = TextFormat()
    more_columns: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)  # read beside texts and label
    may_lack_label: bool = False  # a file without the label column is read as unlabelled although labels are usual


@dataclass(frozen=True)
class TeacherColumns:
    """Columns that hold what a teacher said of each training row."""

    columns: tuple[Column, ...]  # one for each value, or a single one of arrays
    kind: str  # of the values, one of `Target.teacher_kinds`
    temperature: float = 1.0  # what the logits were divided by before they became probabilities
    order: tuple[int, ...] = ()  # the value of each output of the task; (): they are in its order


@dataclass(frozen=True)
class TaskSpec:
    """A task. What its rows are answered with is its target (`tinybert_ds.targets`)."""

    name: str
    splits: Mapping[str, SplitFile]
    metrics: tuple[str, ...]
    official: tuple[str, ...]  # the best checkpoint has the highest mean of these
    eval_splits: tuple[str, ...] = ("dev",)  # evaluated during training; the first one decides
    label_names: tuple[str, ...] = ()
    label_aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings -> name, lower case
    score_range: tuple[float, float] | None = None
    max_seq_length: int = 64
    skip_short_rows: bool = False  # rows with missing fields are skipped and counted, not refused
    skip_labels: tuple[str, ...] = ()  # rows with these labels are skipped and counted, but where labels are not needed
    directory: str = ""  # of a benchmark's task: its folder below --glue_dir
    text_form: str = ""  # of `text_forms.FORMS`: how texts are put together of other values
    augmented_copies: int = 30  # variants that data augmentation tries to make of each text
    label_separator: str = ""  # between the labels of a row that may have several; "": the usual one
    teacher: TeacherColumns | None = None  # of its training rows, where they come with a teacher's answers
    target: str = ""  # what its rows are answered with; "": labels where it has names of them, else scores

    @property
    def kind(self) -> str:
        """The name of its target."""
        return self.target or ("labels" if self.label_names else "scores")

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: C, or 1 for regression."""
        return len(self.label_names) or 1

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(next(iter(self.splits.values())).texts) == 2

    def without_labels(self, splits: Collection[str]) -> TaskSpec:
        """Return the task where the files of these splits, of those that it has, may lack labels."""
        own = {split: replace(file, may_lack_label=True) for split, file in self.splits.items() if split in splits}
        return replace(self, splits={**self.splits, **own})

    def split_path(self, data_dir: str | Path, split: str) -> Path:
        """Return the path of a split's file; one beside the folder is found by the folder's name, if that is a link."""
        return self.file_path(data_dir, self.splits[split].file)

    @staticmethod
    def file_path(data_dir: str | Path, file: str) -> Path:
        """Return the path of a file that the task names, see `split_path`."""
        return Path(os.path.normpath(Path(data_dir) / file))


def label_ids(spec: TaskSpec) -> dict[str, int]:
    """Return lower-case spelling -> class id, names and aliases together."""
    ids = {name.lower(): index for index, name in enumerate(spec.label_names)}
    return {**{alias: ids[name.lower()] for alias, name in spec.label_aliases.items()}, **ids}


def find_label(known: Mapping[str, int], text: str) -> int | None:
    """Return the class id that a text spells, None where none does; 1.0, as pandas writes numbers, is 1.

    Args:
        known: From `label_ids`.
        text: As a file or a model spells it.
    """
    word = text.strip().lower()
    found = known.get(word)
    return known.get(_WHOLE_NUMBER.sub(r"\1", word)) if found is None else found


def file_spelling(spec: TaskSpec, label: int) -> str:
    """Return a class as the task's files spell it: its number where they number the classes so, else its name."""
    name = spec.label_names[label]
    return str(label) if spec.label_aliases.get(str(label)) == name else name


def describe_labels(spec: TaskSpec) -> str:
    """Return the allowed labels for messages: `negative (or 0), positive (or 1)`."""
    spellings = {name: [a for a, n in spec.label_aliases.items() if n == name] for name in spec.label_names}
    return ", ".join(f"{name} (or {', '.join(other)})" if other else name for name, other in spellings.items())
