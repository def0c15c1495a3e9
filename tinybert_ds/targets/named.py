"""What targets share whose answers are names of labels: one of them, any number of them, one for each word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.metrics import Values
from tinybert_ds.data.task_spec import TaskSpec, describe_labels, file_spelling, find_label, label_ids
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.models.labels import Head, HeadKind, match_labels
from tinybert_ds.targets.target import Finding, LabelAudit, Labels, Parser, Settings, Target

_ROUNDED = 1e-2
_SMALLEST = np.float32(1e-12)


class NamedLabels(Target):
    """Labels with names; the model has an output for each, matched by name."""

    head_kind: ClassVar[HeadKind]
    called: ClassVar[str] = "label"
    """What messages call one of them."""
    remedy: ClassVar[str]
    """What to do about one that the task has not."""

    def finder(self, spec: TaskSpec) -> Callable[[str, str], int]:
        """Return what finds the class id of a name; it is given the name, and its place for the message."""
        known = label_ids(spec)

        def find(text: str, where: str) -> int:
            label = find_label(known, text)
            if label is None:
                raise DataError(
                    f"{where}: task {spec.name} has no {self.called} {quoted(text)}; it has "
                    f"{shown(describe_labels(spec), 1000)}. {self.remedy}"
                )
            return label

        return find

    def may_be_hidden(self, spec: TaskSpec) -> bool:
        return find_label(label_ids(spec), "-1") is None

    def head(self, spec: TaskSpec) -> Head:
        return Head(tuple(spec.label_names), kind=self.head_kind)

    def columns(self, spec: TaskSpec, config: Any, stated: Sequence[str] | None, *, role: str) -> list[int]:
        names, aliases = spec.label_names, spec.label_aliases
        return list(match_labels(config, names, aliases, stated, role=role, kind=self.head_kind))


class ExclusiveLabels(NamedLabels):
    """Labels that exclude each other: an answer is a class id."""

    teacher_kinds = ("logits", "probabilities")
    id_type: ClassVar[type[np.int64 | np.int16]]

    def parser(self, spec: TaskSpec) -> Parser:
        return self.finder(spec)

    def as_labels(self, spec: TaskSpec, values: Sequence[Any]) -> Labels:
        return np.asarray(values, dtype=self.id_type)

    def audit(self, spec: TaskSpec) -> LabelAudit:
        return ClassAudit(spec.label_names)

    def teacher_problem(self, values: NDArray[np.float32], kind: str) -> tuple[int, str] | None:
        """Probabilities add up to 1, or to less where the unlikely are left out."""
        if kind != "probabilities":
            return None
        sums = values.sum(axis=1)
        wrong = np.flatnonzero((values < 0).any(axis=1) | (sums <= 0) | (sums > 1 + _ROUNDED))
        if not len(wrong):
            return None
        return int(wrong[0]), (
            f"probabilities {listed(f'{value:g}' for value in values[wrong[0]])} with the sum {sums[wrong[0]]:g}; they "
            "are 0 or more and add up to at most 1. Say `kind: logits` if that is what they are"
        )

    def teacher_outputs(self, values: NDArray[np.float32], kind: str, temperature: float) -> NDArray[np.float32]:
        """Logits; of probabilities p softened by T they are T·log p, with a floor for those that are 0."""
        return values if kind == "logits" else np.float32(temperature) * np.log(np.maximum(values, _SMALLEST))

    def predict(self, spec: TaskSpec, logits: NDArray[np.floating], settings: Settings) -> Values:
        """The best class."""
        return np.asarray(logits.argmax(axis=-1)).astype(self.id_type)

    def constant_answer(self, labels: Labels) -> int:
        """The commonest class id, the lowest one of several."""
        return int(np.bincount(labels.astype(np.int64)).argmax())

    def field(self, spec: TaskSpec, label: Any) -> str:
        """By name where the task's files hold names, by number where they hold numbers."""
        return file_spelling(spec, int(label))


class ClassAudit(LabelAudit):
    """Counts classes."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._classes: Counter[int] = Counter()

    def look(self, labels: Labels) -> None:
        values, counts = np.unique(labels, return_counts=True)
        self._classes.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def findings(self, rows: int) -> Iterator[Finding]:
        if len(self._classes) == 1:
            only = self._names[next(iter(self._classes))]
            yield Finding(f"all {rows:,} rows have the label {shown(only)!r}", all_alike=True)
        elif 1 < len(self._classes) < len(self._names):
            absent = [name for number, name in enumerate(self._names) if number not in self._classes]
            what = f"no row has the label {listed(absent)}; nothing can be learned about it"
            yield Finding(what, all_alike=False)
