"""Any number of labels a row: each is a yes or no of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.metrics import Values
from tinybert_ds.data.task_spec import TaskSpec, file_spelling
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.losses import soft_binary_cross_entropy
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets.named import NamedLabels
from tinybert_ds.targets.target import Finding, LabelAudit, Labels, Parser, Settings
from tinybert_ds.types import Batch

_BETWEEN = "|"
_YES_OR_NO = (0, 1)
_SURE = np.float32(1e-6)
THRESHOLD = 0.5
"""Of a label's probability, where no evaluation split has said a better one."""


class SeveralLabels(NamedLabels):
    """(N, C) uint8: for each row and label 1 where the row has it; the model has a sigmoid for each label."""

    name = "multi_label"
    noun = "several labels a row"
    kind = "multi-label classification"
    metrics = ("micro_f1", "macro_f1", "subset_accuracy")
    keys: ClassVar[Mapping[str, str]] = {
        "label_separator": f"what stands between the labels of a row in text files (default: {_BETWEEN})"
    }
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": True, "score_range": False, "skip_labels": False}
    teacher_kinds = ("logits", "probabilities")
    several_columns = True
    reads_arrays = True
    setting_names = ("thresholds",)
    head_kind = "several"
    remedy = "Mend the row, or list the label in labels or aliases of the task file"

    def read_keys(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        between = content.get("label_separator", _BETWEEN)
        problems = []
        if not isinstance(between, str) or not between.strip():
            problems.append(f"label_separator: some characters that no label has in it, found {shown(between)!r}")
        elif any(between in str(label) for label in content.get("labels", [])):
            problems.append(f"label_separator: {quoted(between)} is a part of one of the labels; take another one")
        return {"label_separator": between}, problems

    def parser(self, spec: TaskSpec) -> Parser:
        find, count = self.finder(spec), len(spec.label_names)

        def parse(text: str, where: str) -> NDArray[np.uint8]:
            words = _words(text, spec.label_separator or _BETWEEN, where)
            if len(words) == count and all(word in _YES_OR_NO and not isinstance(word, str) for word in words):
                return np.array(words, dtype=np.uint8)
            row = np.zeros(count, dtype=np.uint8)
            row[[find(str(word), where) for word in words]] = 1
            return row

        return parse

    def as_labels(self, spec: TaskSpec, values: Sequence[Any]) -> Labels:
        return np.array(values, dtype=np.uint8).reshape(len(values), len(spec.label_names))

    def audit(self, spec: TaskSpec) -> LabelAudit:
        return YesAudit(spec.label_names)

    def teacher_problem(self, values: NDArray[np.float32], kind: str) -> tuple[int, str] | None:
        """A probability is between 0 and 1."""
        if kind != "probabilities":
            return None
        wrong = np.flatnonzero(((values < 0) | (values > 1)).any(axis=1))
        if not len(wrong):
            return None
        found = listed(f"{value:g}" for value in values[wrong[0]])
        said = f"probabilities {found}; they are between 0 and 1. Say `kind: logits` if that is what they are"
        return int(wrong[0]), said

    def teacher_outputs(self, values: NDArray[np.float32], kind: str, temperature: float) -> NDArray[np.float32]:
        """Logits; of probabilities p softened by T they are T·log(p / (1 − p)), with bounds for those of 0 and 1."""
        if kind == "logits":
            return values
        inside = np.clip(values, _SURE, 1 - _SURE)
        return np.float32(temperature) * (np.log(inside) - np.log1p(-inside))

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Soft binary cross-entropy, a mean over rows and labels."""
        denominator = batch.counts.rows * logits.shape[-1]
        return soft_binary_cross_entropy(logits, teacher, temperature=temperature, denominator=denominator)

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy, a mean over rows and labels."""
        assert batch.labels is not None
        total = F.binary_cross_entropy_with_logits(logits.float(), batch.labels.float(), reduction="sum")
        return total / (batch.counts.rows * logits.shape[-1])

    def settle(self, spec: TaskSpec, logits: NDArray[np.floating], labels: Labels) -> Settings:
        """For each label the threshold of its probability that has the highest F1."""
        probabilities = sigmoid(logits)
        places = range(probabilities.shape[1])
        return {"thresholds": np.array([best_threshold(probabilities[:, at], labels[:, at]) for at in places])}

    def predict(self, spec: TaskSpec, logits: NDArray[np.floating], settings: Settings) -> Values:
        """1 where a label's probability reaches its threshold."""
        return (sigmoid(logits) >= settings.get("thresholds", THRESHOLD)).astype(np.uint8)

    def constant_answer(self, labels: Labels) -> Any:
        """Each label that more than half of the rows have, (C,)."""
        return (labels.mean(axis=0) > 0.5).astype(np.uint8)

    def field(self, spec: TaskSpec, label: Any) -> str:
        """The labels that a row has, as the task's files spell them."""
        return (spec.label_separator or _BETWEEN).join(file_spelling(spec, int(at)) for at in np.flatnonzero(label))


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probability of each logit."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def best_threshold(probabilities: NDArray[np.float64], labels: Values) -> float:
    """Return the threshold with the highest F1 of one label, half-way between two rows; of equals the one nearest 0.5.

    Args:
        probabilities, labels: (N,).
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(labels[order].astype(np.int64))
    if not hits[-1]:
        return THRESHOLD
    taken = np.arange(1, len(ranked) + 1)
    following = np.append(ranked[1:], 0.0)
    last_of_equals = np.append(ranked[1:] < ranked[:-1], True)  # which are taken together
    f1 = np.where(last_of_equals, 2 * hits / (taken + hits[-1]), -1.0)
    between = (ranked + following) / 2
    best = np.flatnonzero(f1 == f1.max())
    return float(between[best[np.argmin(np.abs(between[best] - THRESHOLD))]])


def _words(text: str, between: str, where: str) -> list[Any]:
    """The labels of a field: a JSON array, or words with a separator between them."""
    if not text.lstrip().startswith("["):
        return [word for word in text.split(between) if word.strip()] if text.strip() else []
    try:
        words = parse_json(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str | int) or word in _YES_OR_NO for word in words):
        raise DataError(f"{where}: {shown(text, 100)} is no array of labels; give their names, or 0 or 1 for each")
    return words


class YesAudit(LabelAudit):
    """Counts the rows that have each label."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._yes = np.zeros(len(names), dtype=np.int64)

    def look(self, labels: Labels) -> None:
        self._yes += labels.sum(axis=0, dtype=np.int64)

    def findings(self, rows: int) -> Iterator[Finding]:
        names = np.array(self._names, dtype=object)
        constant = (self._yes == 0) | (self._yes == rows)
        if constant.all():
            yield Finding(f"all {rows:,} rows have the same labels ({listed(names[self._yes > 0]) or 'none'})", True)
        elif constant.any():
            never, always = names[self._yes == 0], names[self._yes == rows]
            if len(never):
                yield Finding(f"no row has the label {listed(never)}; nothing can be learned about it", False)
            if len(always):
                yield Finding(f"every row has the label {listed(always)}; nothing can be learned about it", False)
