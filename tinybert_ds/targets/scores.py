"""A number for each row: regression, similarity, relevance to a query.

B rows of a micro-batch, N rows of a split.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.metrics import Values, compute_metrics
from tinybert_ds.data.task_spec import GROUPS, Column, TaskSpec
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.losses import regression_loss
from tinybert_ds.models.labels import Head
from tinybert_ds.targets.target import Finding, LabelAudit, Labels, Parser, Settings, Target
from tinybert_ds.types import Batch

RANKING_METRICS: Mapping[str, str] = {"ndcg_10": "nDCG@10", "mrr_10": "RR@10", "map": "AP"}
"""What ir-measures calls them."""


class Score(Target):
    """A float32 for each row; the model has one output."""

    name = "scores"
    noun = "scores"
    kind = "regression"
    metrics = ("pearson", "spearman", *RANKING_METRICS)
    keys: ClassVar[Mapping[str, str]] = {
        "group": "the column that says which rows belong together, such as query_id: rankings are judged, and margins "
        "learned, within them"
    }
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": False}
    softens = False
    teacher_kinds = ("scores", "logits")
    teacher_width = 1
    learns_gold = True

    def read_keys(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        metrics = content.get("metric")
        ranked = [name for name in (metrics if isinstance(metrics, list) else [metrics]) if name in RANKING_METRICS]
        problems = []
        if ranked and "group" not in content:
            problems.append(f"group: missing ({self.keys['group']}); metric {listed(ranked)} is one of rankings")
        if "group" in content and not isinstance(content["group"], str):
            problems.append(f"group: one column, found {shown(content['group'])}")
        return {}, problems

    def lacks(self, spec: TaskSpec) -> str | None:
        if not {*spec.official} & {*RANKING_METRICS} or importlib.util.find_spec("ir_measures") is not None:
            return None
        return "metric: rankings need ir-measures: bash launchers/install.sh retrieval"

    def more_columns(self, content: Mapping[str, Any]) -> dict[str, tuple[Column, ...]]:
        return {GROUPS: (str(content["group"]),)} if "group" in content else {}

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

    def measure(
        self, spec: TaskSpec, predictions: Values, labels: Labels, groups: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        """Rankings are judged for each group of rows, and are means over the groups."""
        ranked = [name for name in spec.metrics if name in RANKING_METRICS]
        found = compute_metrics(
            replace(spec, metrics=tuple(m for m in spec.metrics if m not in ranked)), predictions, labels
        )
        if ranked:
            assert groups is not None, "a task with a metric of rankings has a group"
            found |= ranking_metrics(ranked, predictions, labels, groups)
        return {name: found[name] for name in spec.metrics}

    def gold_problem(self, spec: TaskSpec, labels: Labels) -> tuple[int, str] | None:
        """Rankings are judged by whole numbers."""
        odd = np.flatnonzero(np.rint(labels) != labels)
        ranked = [name for name in spec.metrics if name in RANKING_METRICS]
        if not ranked or not len(odd):
            return None
        found = f"{float(labels[odd[0]]):g}"
        return int(odd[0]), f"the relevance {found}; metric {listed(ranked)} is of whole numbers from 0"

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


class ScoreMargin(Score):
    """Learns from a teacher how far apart two rows of a group are, not where they are (MarginMSE, arXiv 2010.02666).

    Rows 2k and 2k + 1 of a batch are a pair where they are of one group; see `data.row_pairs`.
    """

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Mean squared difference of the margins, over the pairs of the global batch."""
        assert batch.groups is not None
        whole = len(logits) - len(logits) % 2
        paired = (batch.groups[:whole:2] == batch.groups[1:whole:2]).to(torch.float32)
        margins = [scores.float().reshape(-1)[:whole] for scores in (logits, teacher.detach())]
        student, target = (scores[::2] - scores[1::2] for scores in margins)
        return ((student - target).square() * paired).sum() / (batch.counts.units or math.inf)


def ranking_metrics(
    names: Sequence[str], predictions: Values, labels: Labels, groups: NDArray[np.int64]
) -> dict[str, float]:
    """Return metrics of rankings by ir-measures, means over the groups; one without a relevant row counts as 0.

    Args:
        names: Of `RANKING_METRICS`.
        predictions, labels, groups: (N,) scores, relevances and which rows are ranked together.

    Raises:
        ConfigError: ir-measures is not installed.
        DataError: Relevances that are no whole numbers.
    """
    try:
        library = importlib.import_module("ir_measures")
    except ImportError as error:
        raise ConfigError("metrics of rankings need ir-measures: bash launchers/install.sh retrieval") from error
    relevances = np.rint(labels).astype(np.int64)
    if not np.array_equal(relevances, labels):
        odd = labels[np.flatnonzero(relevances != labels)[0]]
        raise DataError(f"metric {listed(names)}: relevances are whole numbers from 0, found {float(odd):g}")
    if not np.isfinite(predictions).all():  # a model that diverges is the worst
        return dict.fromkeys(names, 0.0)
    rows = list(zip(groups.tolist(), range(len(groups)), strict=True))
    truth = [library.Qrel(str(g), f"{at:09}", int(relevances[at])) for g, at in rows]
    ranking = [library.ScoredDoc(str(g), f"{at:09}", float(predictions[at])) for g, at in rows]
    measures = {name: library.parse_measure(RANKING_METRICS[name]) for name in names}
    found = library.calc_aggregate(list(measures.values()), truth, ranking)
    return {name: float(found[measure]) for name, measure in measures.items()}


class RangeAudit(LabelAudit):
    """Knows the lowest and the highest score."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def look(self, labels: Labels) -> None:
        self._low, self._high = min(self._low, float(labels.min())), max(self._high, float(labels.max()))

    def findings(self, rows: int) -> Iterator[Finding]:
        if self._low == self._high:
            yield Finding(f"all {rows:,} scores are {self._low:g}", all_alike=True)
