"""A tag for each word: entities, parts of speech."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.metrics import Values
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.token_files import suffix_of, with_tags
from tinybert_ds.errors import ConfigError
from tinybert_ds.foreign_text import listed, shown
from tinybert_ds.losses import soft_cross_entropy
from tinybert_ds.targets.named import ExclusiveLabels
from tinybert_ds.targets.target import Labels
from tinybert_ds.types import Batch

_SCHEMES: Mapping[str, tuple[str, ...]] = {"BIO": ("B", "I"), "IOBES": ("B", "I", "E", "S")}
_OUTSIDE = "O"
_ENTITY_METRICS: Mapping[str, str] = {
    "entity_f1": "f1_score",
    "entity_precision": "precision_score",
    "entity_recall": "recall_score",
}


class Tags(ExclusiveLabels):
    """A class id, int16, for each word, at its first piece; the model has an output for each tag and token."""

    name = "tags"
    noun = "tags"
    kind = "tagging of words"
    metrics = (*_ENTITY_METRICS, "tag_accuracy", "tag_macro_f1")
    keys: ClassVar[Mapping[str, str]] = {
        "scheme": f"{' or '.join(_SCHEMES)}: labels lists the kinds of entities, and tags are made of them (default: "
        "labels lists the tags themselves)"
    }
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": True, "score_range": False, "skip_labels": False}
    unit = "word"
    id_type = np.int16
    head_kind = "tokens"
    called = "tag"
    remedy = "Mend the word, or list the tag in labels or aliases of the task file"
    not_augmented = (
        "a word that is replaced may begin, end or be no part of an entity any more, and tags belong to the words as "
        "they were; train on the rows as they are, or on more of them that a teacher has labelled"
    )

    def read_keys(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        fields: dict[str, Any] = {} if "max_seq_length" in content else {"max_seq_length": 128}
        problems = []
        scheme, labels = content.get("scheme"), content.get("labels")
        if isinstance(content.get("text"), list):
            problems.append("text: one column of words")
        if scheme is not None and scheme not in _SCHEMES:
            problems.append(f"scheme: one of {', '.join(_SCHEMES)}, found {shown(scheme)!r}")
        elif scheme is not None and isinstance(labels, list):
            entities = [str(label) for label in labels if str(label) != _OUTSIDE]
            if any(label[:2] in ("B-", "I-", "E-", "S-") for label in entities):
                problems.append(
                    f"scheme: labels lists tags already ({listed(entities)}); leave scheme out, or name entities"
                )
            names = (_OUTSIDE, *(f"{mark}-{entity}" for entity in entities for mark in _SCHEMES[scheme]))
            fields["label_names"] = names
        return fields, problems

    def lacks(self, spec: TaskSpec) -> str | None:
        if not {*spec.official} & {*_ENTITY_METRICS} or importlib.util.find_spec("seqeval") is not None:
            return None
        return "metric: entity metrics need seqeval: bash launchers/install.sh tags"

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Soft cross-entropy of each word, over the words of the global batch."""
        denominator = batch.counts.units * logits.shape[-1]
        return soft_cross_entropy(logits, teacher, temperature=temperature, denominator=denominator)

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each word, over the words of the global batch."""
        assert batch.labels is not None
        assert batch.units is not None
        return F.cross_entropy(logits.float(), batch.labels[batch.units], reduction="sum") / batch.counts.units

    def measure(
        self, spec: TaskSpec, predictions: Values, labels: Labels, groups: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        """Entities are compared sentence by sentence, as conlleval does; `groups` says which a word belongs to."""
        found: dict[str, float] = {}
        names = np.array(spec.label_names, dtype=object)
        sentences = []
        if any(name in _ENTITY_METRICS for name in spec.metrics):
            assert groups is not None
            sentences = [by_sentence(names[values], groups) for values in (labels, predictions)]
        for name in spec.metrics:
            if name in _ENTITY_METRICS:
                found[name] = entity_metric(_ENTITY_METRICS[name], *sentences)
            else:
                found[name] = _tag_metric(name, predictions, labels)
        return found

    def prediction_file(
        self, spec: TaskSpec, split: str, paths: Sequence[Path], predictions: Values, groups: NDArray[np.int64] | None
    ) -> tuple[str, str]:
        """The split's file with the predicted tags in the place of its own."""
        assert groups is not None
        tags = iter(by_sentence(np.array(self.words(spec, predictions), dtype=object), groups))
        layout = spec.splits[split]
        return suffix_of(paths[0]), "".join(line for path in paths for line in with_tags(path, layout, tags))


def by_sentence(words: NDArray, groups: NDArray[np.int64]) -> list[list[str]]:
    """Return what belongs to each word (P,) as a list for each sentence; `groups` (P,) are their numbers."""
    begins = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
    return [words[begin:end].tolist() for begin, end in pairwise([*begins, len(groups)])]


def entity_metric(name: str, references: list[list[str]], predictions: list[list[str]]) -> float:
    """Return a metric of seqeval by its name, 0 where it is undefined.

    Raises:
        ConfigError: seqeval is not installed.
    """
    try:
        seqeval = importlib.import_module("seqeval.metrics")
    except ImportError as error:
        raise ConfigError("entity metrics need seqeval: bash launchers/install.sh tags") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics that are undefined, and of tags that are no entities
        return float(getattr(seqeval, name)(references, predictions, zero_division=0))


def _tag_metric(name: str, predictions: Values, labels: Labels) -> float:
    if name == "tag_accuracy":
        return float((predictions == labels).mean())
    metrics = importlib.import_module("sklearn.metrics")
    return float(metrics.f1_score(labels, predictions, average="macro", zero_division=0.0))
