"""The files of GLUE as the benchmark distributes them, quirks included, with texts of our own.

Every task has 12 rows to learn from, 6 to judge on and 5 to predict; `Expected` says what a reader must find in them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.models import WORDS

SPLITS = {"train": 12, "dev": 6, "test": 5}
_PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class GlueTask:
    """A task's files: the columns of train and dev, those of test, the labels as written there, and its quirks."""

    folder: str
    columns: tuple[str, ...]
    test_columns: tuple[str, ...]
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]  # as the files spell them; of a regression the scores
    header: bool = True
    byte_order_mark: bool = False
    blank_lines: bool = False
    short_rows: bool = False
    dev_files: tuple[str, ...] = ("dev.tsv",)
    test_files: tuple[str, ...] = ("test.tsv",)


_MNLI = (*"index promptID pairID genre sentence1_binary_parse sentence2_binary_parse".split(),)
_MNLI += ("sentence1_parse", "sentence2_parse", *_PAIR)
_STSB = ("index", "genre", "filename", "year", "old_index", "source1", "source2", *_PAIR)
_MRPC = ("#1 ID", "#2 ID", "#1 String", "#2 String")

GLUE_FILES: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        ("source", "label", "star", "sentence"),
        ("index", "sentence"),
        ("sentence",),
        "label",
        ("0", "1"),
        header=False,
    ),
    "sst-2": GlueTask(
        "SST-2", ("sentence", "label"), ("index", "sentence"), ("sentence",), "label", ("0", "1"), blank_lines=True
    ),
    "mrpc": GlueTask(
        "MRPC",
        ("Quality", *_MRPC),
        ("index", *_MRPC),
        ("#1 String", "#2 String"),
        "Quality",
        ("0", "1"),
        byte_order_mark=True,
    ),
    "sts-b": GlueTask("STS-B", (*_STSB, "score"), _STSB, _PAIR, "score", ("0.000", "2.500", "5.000", "3.8")),
    "qqp": GlueTask(
        "QQP",
        ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        ("id", "question1", "question2"),
        ("question1", "question2"),
        "is_duplicate",
        ("0", "1"),
        short_rows=True,
    ),
    "mnli": GlueTask(
        "MNLI",
        (*_MNLI, "label1", "gold_label"),
        _MNLI,
        _PAIR,
        "gold_label",
        ("neutral", "entailment", "contradiction"),
        dev_files=("dev_matched.tsv", "dev_mismatched.tsv"),
        test_files=("test_matched.tsv", "test_mismatched.tsv"),
    ),
    "qnli": GlueTask(
        "QNLI",
        ("index", "question", "sentence", "label"),
        ("index", "question", "sentence"),
        ("question", "sentence"),
        "label",
        ("entailment", "not_entailment"),
    ),
    "rte": GlueTask(
        "RTE",
        ("index", *_PAIR, "label"),
        ("index", *_PAIR),
        _PAIR,
        "label",
        ("not_entailment", "entailment"),
        blank_lines=True,
    ),
    "wnli": GlueTask("WNLI", ("index", *_PAIR, "label"), ("index", *_PAIR), _PAIR, "label", ("0", "1")),
}

NAMES = {"cola": ("unacceptable", "acceptable"), "sst-2": ("negative", "positive")}
NAMES |= {"mrpc": ("not_equivalent", "equivalent"), "qqp": ("not_duplicate", "duplicate")}
NAMES |= {"wnli": ("not_entailment", "entailment")}
"""What the numbers in the files of a task stand for."""


@dataclass(frozen=True)
class Expected:
    """What a file holds: (text, ...) of each row, and the labels as it spells them."""

    texts: list[tuple[str, ...]]
    labels: list[str]


def write_glue(root: Path, names: Sequence[str] = tuple(GLUE_FILES)) -> dict[tuple[str, str], Expected]:
    """Write the tasks' folders, and MNLI's diagnostic set; return (task, file) -> what is in it."""
    found = {}
    for name in names:
        task = GLUE_FILES[name]
        folder = root / task.folder
        folder.mkdir(parents=True)
        files = [("train.tsv", "train"), *((file, "dev") for file in task.dev_files)]
        files += [(file, "test") for file in task.test_files]
        for file, split in files:
            rng = random.Random(f"{name} {file}")
            content, expected = _file(task, split, rng)
            (folder / file).write_bytes(content)
            found[name, file] = expected
        if name == "mnli":
            (root / "diagnostic").mkdir()
            rows = [f"{number}\t{_text(random.Random(number))}\tthe film" for number in range(4)]
            text = "\n".join(["index\tsentence1\tsentence2", *rows]) + "\n"
            (root / "diagnostic" / "diagnostic.tsv").write_text(text, encoding="utf-8")
    return found


def _file(task: GlueTask, split: str, rng: random.Random) -> tuple[bytes, Expected]:
    columns = task.test_columns if split == "test" else task.columns
    lines = ["\t".join(columns)] if task.header or split == "test" else []
    expected = Expected([], [])
    for number in range(SPLITS[split]):
        row = {column: f"{column.strip('#')} {number}" for column in columns}
        row |= {column: str(number) for column in columns if column in ("index", "id")}
        row |= {column: _text(rng) for column in task.texts}
        label = task.labels[number % len(task.labels)]
        if split != "test":
            row[task.label] = label
        expected.texts.append(tuple(row[column] for column in task.texts))
        expected.labels.append(label)
        lines.append("\t".join(row[column] for column in columns))
        if task.short_rows and split == "train" and number == 3:
            lines.append("90\t91\t92\tonly one question")
        if task.blank_lines and number == 2:
            lines.append("")
    mark = "\ufeff" if task.byte_order_mark else ""
    return (mark + "\n".join(lines) + "\n").encode("utf-8"), expected


def _text(rng: random.Random) -> str:
    words = rng.choices([word for word in WORDS if not word.startswith("##")], k=rng.randint(2, 9))
    quirk = rng.choice(
        ["", '"', " 's", '"quoted" ', "  ", "caf\u00e9 "]
    )  # a stray quotation mark is a part of the text
    return quirk + " ".join(words)
