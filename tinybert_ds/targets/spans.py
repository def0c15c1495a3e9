"""A span of a context as the answer to a question: SQuAD.

S tokens of a row, P answered tokens of a split, Q questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.batching import BEGINS, ENDS
from tinybert_ds.data.metrics import Values
from tinybert_ds.data.span_files import Question, question_blocks
from tinybert_ds.data.span_metrics import best_null_threshold, best_of, exact_match, token_f1
from tinybert_ds.data.task_spec import GROUPS, PLACES, TaskSpec
from tinybert_ds.errors import ModelError
from tinybert_ds.foreign_text import listed
from tinybert_ds.losses import soft_cross_entropy
from tinybert_ds.models.labels import Head, output_names
from tinybert_ds.targets.target import Finding, LabelAudit, Labels, Parser, Settings, Target
from tinybert_ds.types import Batch

LONGEST_ANSWER = 30
"""Tokens of an answer, as in the official baselines."""

_METRICS = {"exact_match": exact_match, "answer_f1": token_f1}
_ENDS = ("start", "end")
_ELSEWHERE = -1e9
"""The logit of a token that is no answer: a probability of 0, and finite, so that 0 times it is 0."""


class Spans(Target):
    """(Q, 2) int32: the characters of the context from which to which the answer is, -1 where there is none.

    The model has two outputs for each token, whether the answer begins and whether it ends there; "no answer" is both
    at the first special token.
    """

    name = "spans"
    noun = "spans of a context"
    kind = "extraction of answers"
    metrics = tuple(_METRICS)
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": False, "score_range": False, "skip_labels": False}
    unit = "piece"
    setting_names = ("thresholds",)
    not_augmented = (
        "an answer is found by its characters, which move when a word of its context is replaced; train on the rows as "
        "they are"
    )

    def read_keys(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        problems = []
        if not isinstance(content.get("text"), list) or len(content["text"]) != 2:
            problems.append("text: the columns of question and context, such as [question, context]")
        return ({} if "max_seq_length" in content else {"max_seq_length": 384}), problems

    def parser(self, spec: TaskSpec) -> Parser:
        raise AssertionError("answers are read together with their contexts, by data.span_files")

    def as_labels(self, spec: TaskSpec, values: Sequence[Any]) -> Labels:
        return np.array(values, dtype=np.int32).reshape(len(values), 2)

    def audit(self, spec: TaskSpec) -> LabelAudit:
        return SpanAudit()

    def head(self, spec: TaskSpec) -> Head:
        return Head(_ENDS, kind="spans")

    def columns(self, spec: TaskSpec, config: Any, stated: Sequence[str] | None, *, role: str) -> list[int]:
        """Start and end, which all heads of transformers give in this order."""
        if stated is not None:
            raise ModelError("--teacher_labels: a head for spans has the outputs start and end; leave it out")
        if config.num_labels != len(_ENDS):
            raise ModelError(
                f"the {role} has {config.num_labels} outputs ({listed(output_names(config))}), a head for spans has "
                "start and end; give a model for question answering"
            )
        return [0, 1]

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Soft cross-entropy over the tokens of a row, of where the answer begins and ends; a mean over both."""
        return soft_cross_entropy(
            _by_position(logits, batch),
            _by_position(teacher, batch),
            temperature=temperature,
            denominator=len(_ENDS) * batch.counts.rows,
        )

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over the tokens of a row, of where the answer begins and ends; a mean over both."""
        assert batch.labels is not None
        begins = ((batch.labels == BEGINS) | (batch.labels == BEGINS + ENDS)).int().argmax(dim=1)
        ends = ((batch.labels == ENDS) | (batch.labels == BEGINS + ENDS)).int().argmax(dim=1)
        places = torch.stack((begins, ends), dim=1).flatten()
        return F.cross_entropy(_by_position(logits, batch), places, reduction="sum") / (len(_ENDS) * batch.counts.rows)

    def answers(
        self, logits: NDArray[np.floating], offsets: NDArray[np.int64] | None, columns: Mapping[str, NDArray]
    ) -> NDArray[np.float64]:
        """(Q, 4): the characters of the best span of all windows, its score, and the lowest score of "no answer"."""
        assert offsets is not None
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        questions = columns[GROUPS][rows]
        places, inside = columns[PLACES], columns[PLACES][:, 0] >= 0
        scores, last = best_spans(logits.astype(np.float64), rows, inside)
        begins = np.flatnonzero(np.diff(questions, prepend=-1))
        sizes = np.diff(np.append(begins, len(questions)))
        best = np.maximum.reduceat(scores, begins)
        reached = np.flatnonzero(scores == np.repeat(best, sizes))
        first = reached[np.searchsorted(reached, begins)]
        nothing = np.minimum.reduceat(np.where(inside, np.inf, logits.sum(axis=1, dtype=np.float64)), begins)
        return np.stack([places[first, 0], places[last[first], 1], best, nothing], axis=1).astype(np.float64)

    def gold(self, spec: TaskSpec, split: str, paths: Sequence[Path], labels: Labels) -> Any:
        """The questions, Q, with all their answers."""
        return _questions(spec, split, paths)

    def settle(self, spec: TaskSpec, logits: NDArray[np.floating], labels: Any) -> Settings:
        """Where some questions have no answer: half of the margin above which there is none, for start and end each."""
        right = [_texts(question) for question in labels]
        if all(right):
            return {}
        found = _cut_out(labels, logits[:, :2].astype(np.int64))
        spans = np.array([best_of(token_f1, text, texts) for text, texts in zip(found, right, strict=True)])
        nothing = np.array([best_of(token_f1, "", texts) for texts in right])
        margins = logits[:, 3] - np.maximum(logits[:, 2], -np.finfo(np.float32).max)
        return {"thresholds": np.full(2, best_null_threshold(margins, spans, nothing) / 2)}

    def predict(self, spec: TaskSpec, logits: NDArray[np.floating], settings: Settings) -> Values:
        """The best span; none where the margin of "no answer" is above the sum of the thresholds, if there are any."""
        found = logits[:, :2].astype(np.int64)
        if "thresholds" in settings:
            found[logits[:, 3] - logits[:, 2] > settings["thresholds"].sum()] = -1
        return found

    def measure(
        self, spec: TaskSpec, predictions: Values, labels: Any, groups: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        found = _cut_out(labels, predictions)
        pairs = [(text, _texts(question)) for text, question in zip(found, labels, strict=True)]
        return {name: float(np.mean([best_of(_METRICS[name], *pair) for pair in pairs])) for name in spec.metrics}

    def constant_answer(self, labels: Labels) -> Any:
        """No answer: nothing else can be said without the context."""
        return np.array([-1, -1])

    def field(self, spec: TaskSpec, label: Any) -> str:
        return f"{label[0]}-{label[1]}"

    def prediction_file(
        self, spec: TaskSpec, split: str, paths: Sequence[Path], predictions: Values, groups: NDArray[np.int64] | None
    ) -> tuple[str, str]:
        """id -> answer, "" where there is none, as the official scripts read it."""
        questions = _questions(spec, split, paths)
        found = zip(questions, _cut_out(questions, predictions), strict=True)
        content = {question.id: text for question, text in found}
        return ".json", json.dumps(content, ensure_ascii=False, indent=1) + "\n"


class SpanAudit(LabelAudit):
    """Counts questions without an answer."""

    def __init__(self) -> None:
        self._without = 0

    def look(self, labels: Labels) -> None:
        self._without += int((labels[:, 0] < 0).sum())

    def findings(self, rows: int) -> Iterator[Finding]:
        if self._without == rows:
            yield Finding(f"none of {rows:,} questions has an answer", all_alike=True)


def best_spans(
    logits: NDArray[np.floating], rows: NDArray[np.int64], inside: NDArray[np.bool_]
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Return the score of the best span that begins at each token (P,), and the token that it ends with.

    Args:
        logits: (P, 2) of start and end.
        rows: (P,) the row of each token.
        inside: (P,) whether it is a token of the context.
    """
    count = len(rows)
    starts, ends = (np.where(inside, logits[:, at], -np.inf) for at in (0, 1))
    scores, last = np.full(count, -np.inf), np.arange(count)
    for more in range(min(LONGEST_ANSWER, count)):
        begin, end = slice(0, count - more), slice(more, count)
        found = np.where(rows[begin] == rows[end], starts[begin] + ends[end], -np.inf)
        better = found > scores[begin]
        scores[begin] = np.where(better, found, scores[begin])
        last[begin] = np.where(better, np.arange(count)[end], last[begin])
    return scores, last


def _by_position(values: Tensor, batch: Batch) -> Tensor:
    """Outputs (n, 2) of the answered tokens as (2·B, S), row after row its starts and its ends."""
    assert batch.units is not None
    padded = values.new_full((*batch.units.shape, len(_ENDS)), _ELSEWHERE, dtype=values.float().dtype)
    padded[batch.units] = values.to(padded.dtype)
    return padded.transpose(1, 2).flatten(0, 1)


def _questions(spec: TaskSpec, split: str, paths: Sequence[Path]) -> list[Question]:
    layout = replace(spec.splits[split], may_lack_label=True)
    return [question for _, block in question_blocks(paths, layout) for question in block]


def _texts(question: Question) -> list[str]:
    return [answer.text for answer in question.answers or ()]


def _cut_out(questions: Sequence[Question], spans: Values) -> list[str]:
    """The texts of spans (Q, 2) of the contexts, "" where there is none."""
    found = zip(questions, spans.tolist(), strict=True)
    return ["" if begin < 0 else question.context[begin:end].strip() for question, (begin, end) in found]
