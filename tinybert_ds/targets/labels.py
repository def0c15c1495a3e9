"""One label a row, out of several that exclude each other: classification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.metrics import Values
from tinybert_ds.data.task_spec import TaskSpec, describe_labels, file_spelling, find_label, label_ids
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.losses import logit_divergence, logit_error, soft_cross_entropy
from tinybert_ds.models.labels import Head, match_labels
from tinybert_ds.targets.target import Finding, LabelAudit, Labels, Parser, Settings, Target
from tinybert_ds.types import Batch

CLASS_KINDS = ("logits", "probabilities")
"""What columns may hold about labels that exclude each other."""

_ROUNDED = 1e-2
_SMALLEST = np.float32(1e-12)


class OneLabel(Target):
    """A class id, int64, for each row; the model has an output for each class."""

    name = "labels"
    noun = "labels"
    kind = "classification"
    metrics = ("accuracy", "f1", "macro_f1", "matthews")
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": True, "score_range": False}
    other_forms = ("mse", "kl")
    mixes = True
    exclusive = True
    teacher_kinds = CLASS_KINDS

    def parser(self, spec: TaskSpec) -> Parser:
        known = label_ids(spec)

        def parse(text: str, where: str) -> int:
            label = find_label(known, text)
            if label is None:
                raise DataError(
                    f"{where}: task {spec.name} has no label {quoted(text)}; it has "
                    f"{shown(describe_labels(spec), 1000)}. Mend the row, or list the label in a task file "
                    "(--task_file): in labels or aliases, or in skip_labels to leave such rows out"
                )
            return label

        return parse

    def as_labels(self, spec: TaskSpec, values: Sequence[Any]) -> Labels:
        return np.asarray(values, dtype=np.int64)

    def audit(self, spec: TaskSpec) -> LabelAudit:
        return ClassAudit(spec.label_names)

    def may_be_hidden(self, spec: TaskSpec) -> bool:
        return find_label(label_ids(spec), "-1") is None

    def head(self, spec: TaskSpec) -> Head:
        return Head(tuple(spec.label_names))

    def columns(self, spec: TaskSpec, config: Any, stated: Sequence[str] | None, *, role: str) -> list[int]:
        return list(match_labels(config, spec.label_names, spec.label_aliases, stated, role=role))

    def teacher_problem(self, values: NDArray[np.float32], kind: str) -> tuple[int, str] | None:
        return class_problem(values, kind)

    def teacher_outputs(self, values: NDArray[np.float32], kind: str, temperature: float) -> NDArray[np.float32]:
        return class_logits(values, kind, temperature)

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Soft cross-entropy (arXiv 1909.10351, eq. 10)."""
        return self.formed_loss(logits, teacher, batch, form="cross_entropy", temperature=temperature)

    def formed_loss(
        self,
        logits: Tensor,
        teacher: Tensor,
        batch: Batch,
        *,
        form: str,
        temperature: float,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Soft cross-entropy, squared differences of logits, or the divergence times the squared temperature."""
        rows, classes = batch.counts.rows, logits.shape[-1]
        if form == "mse":
            return logit_error(logits, teacher, denominator=rows * classes, row_weights=row_weights)
        if form == "kl":
            return logit_divergence(logits, teacher, temperature=temperature, denominator=rows, row_weights=row_weights)
        return soft_cross_entropy(
            logits, teacher, temperature=temperature, denominator=rows * classes, row_weights=row_weights
        )

    def weighed_label_loss(self, logits: Tensor, batch: Batch, row_weights: Tensor) -> Tensor:
        """Cross-entropy."""
        assert batch.labels is not None
        rows = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        return ((rows * row_weights).sum() / batch.counts.rows).float()

    def confidence(self, teacher: Tensor, batch: Batch) -> Tensor:
        """The probability that it gives the label."""
        assert batch.labels is not None
        return teacher.float().softmax(dim=-1).gather(1, batch.labels[:, None])[:, 0]

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over the global batch's rows."""
        assert batch.labels is not None
        return (F.cross_entropy(logits.float(), batch.labels, reduction="sum") / batch.counts.rows).float()

    def predict(self, spec: TaskSpec, logits: NDArray[np.floating], settings: Settings) -> Values:
        """The best class."""
        return np.asarray(logits.argmax(axis=-1))

    def constant_answer(self, labels: Labels) -> float:
        """The commonest class id, the lowest one of several."""
        return int(np.bincount(labels.astype(np.int64)).argmax())

    def field(self, spec: TaskSpec, label: Any) -> str:
        """By name where the task's files hold names, by number where they hold numbers."""
        return file_spelling(spec, int(label))

    def words(self, spec: TaskSpec, predictions: Values) -> list[str]:
        """As the task's files spell them."""
        return [self.field(spec, label) for label in predictions]


def class_problem(values: NDArray[np.float32], kind: str) -> tuple[int, str] | None:
    """Return the first row that cannot be, see `Target.teacher_problem`.

    Probabilities of labels that exclude each other add up to 1, or to less where the unlikely are left out.
    """
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


def class_logits(values: NDArray[np.float32], kind: str, temperature: float) -> NDArray[np.float32]:
    """Return logits; of probabilities p softened by T they are T·log p, with a floor for those that are 0."""
    return values if kind == "logits" else np.float32(temperature) * np.log(np.maximum(values, _SMALLEST))


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
