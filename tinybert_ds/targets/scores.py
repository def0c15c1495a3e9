"""A number for each row: regression, similarity, relevance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.metrics import Values
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted
from tinybert_ds.losses import regression_loss
from tinybert_ds.models.labels import Head
from tinybert_ds.targets.target import Finding, LabelAudit, Labels, Parser, Settings, Target
from tinybert_ds.types import Batch


class Score(Target):
    """A float32 for each row; the model has one output."""

    name = "scores"
    noun = "scores"
    kind = "regression"
    metrics = ("pearson", "spearman")
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": False}
    softens = False
    teacher_kinds = ("scores", "logits")
    teacher_width = 1
    learns_gold = True

    def parser(self, spec: TaskSpec) -> Parser:
        low, high = spec.score_range or (-math.inf, math.inf)

        def parse(text: str, where: str) -> float:
            try:
                score = float(text)
            except ValueError:
                score = math.nan
            if not (math.isfinite(score) and low <= score <= high):
                raise DataError(
                    f"{where}: {quoted(text)} is no score of task {spec.name}; scores are numbers from {low:g} to "
                    f"{high:g}"
                )
            return score

        return parse

    def as_labels(self, spec: TaskSpec, values: Sequence[Any]) -> Labels:
        return np.asarray(values, dtype=np.float32)

    def audit(self, spec: TaskSpec) -> LabelAudit:
        return RangeAudit()

    def may_be_hidden(self, spec: TaskSpec) -> bool:
        return spec.score_range is not None and spec.score_range[0] > -1

    def head(self, spec: TaskSpec) -> Head:
        return Head(None)

    def columns(self, spec: TaskSpec, config: Any, stated: Sequence[str] | None, *, role: str) -> list[int]:
        """Its only one, whatever it is called."""
        return [0]

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Mean squared error against the teacher's scores."""
        return regression_loss(logits, teacher, denominator=batch.counts.rows)

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over the global batch's rows."""
        assert batch.labels is not None
        return regression_loss(logits, batch.labels, denominator=batch.counts.rows)

    def predict(self, spec: TaskSpec, logits: NDArray[np.floating], settings: Settings) -> Values:
        """The scores, kept inside the task's range."""
        scores = logits.reshape(len(logits))
        return np.clip(scores, *spec.score_range) if spec.score_range else scores

    def constant_answer(self, labels: Labels) -> float:
        """The mean score."""
        return float(labels.mean())

    def field(self, spec: TaskSpec, label: Any) -> str:
        """All digits."""
        return repr(label)

    def words(self, spec: TaskSpec, predictions: Values) -> list[str]:
        """With three decimals, inside the task's range."""
        low, high = spec.score_range or (-math.inf, math.inf)
        return [f"{min(max(float(score), low), high):.3f}" for score in predictions]


class RangeAudit(LabelAudit):
    """Knows the lowest and the highest score."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def look(self, labels: Labels) -> None:
        self._low, self._high = min(self._low, float(labels.min())), max(self._high, float(labels.max()))

    def findings(self, rows: int) -> Iterator[Finding]:
        if self._low == self._high:
            yield Finding(f"all {rows:,} scores are {self._low:g}", all_alike=True)
