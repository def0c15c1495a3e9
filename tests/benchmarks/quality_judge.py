"""How good a student is: its metric on labelled rows, and how far it agrees with its teacher on unlabelled ones.

n rows, C classes. Models are loaded by transformers alone, as a user would.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tests.benchmarks.quality_inputs import LONGEST
from tinybert_ds.hardware import inference_dtype

_BATCH_ROWS = 64


class Judgement(NamedTuple):
    """What is known of a student."""

    score: float  # accuracy, or Spearman's correlation with the gold scores
    divergence: float  # mean KL(teacher || student); of scores the squared error over the variance of the teacher's
    equal: float  # share of the teacher's decisions; of scores Pearson's correlation with the teacher's


def judge(
    logits: NDArray[np.float32], references: Sequence[float], answers: NDArray[np.float32], teacher: NDArray[np.float32]
) -> Judgement:
    """Judge a student; one that says the same of all rows has a correlation of 0.

    Args:
        logits: (n, C) of the test rows, or (n, 1) scores.
        references: (n,) class ids or scores of these rows.
        answers: (n, C) of the unlabelled rows.
        teacher: (n, C) the teacher's of these.
    """
    if logits.shape[1] == 1:
        error = np.square(answers - teacher).mean() / teacher.var()
        score = stats.spearmanr(logits[:, 0], references).statistic if np.ptp(logits) else 0.0
        correlation = stats.pearsonr(answers[:, 0], teacher[:, 0]).statistic if np.ptp(answers) else 0.0
        return Judgement(float(score), float(error), float(correlation))
    expected, found = _log_softmax(teacher), _log_softmax(answers)
    divergence = (np.exp(expected) * (expected - found)).sum(axis=1).mean()
    equal = (answers.argmax(axis=1) == teacher.argmax(axis=1)).mean()
    return Judgement(float((logits.argmax(axis=1) == np.asarray(references)).mean()), float(divergence), float(equal))


@torch.no_grad()
def logits_of(model: Path, rows: Sequence[tuple[str, ...]]) -> NDArray[np.float32]:
    """Return the logits (n, C) of a classifier for rows of one text or two."""
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    encoded = tokenizer(*map(list, zip(*rows, strict=True)), truncation=True, max_length=LONGEST)
    order = sorted(range(len(rows)), key=lambda row: len(encoded["input_ids"][row]))
    found = np.zeros((len(rows), classifier.config.num_labels), dtype=np.float32)
    half = inference_dtype(torch.device("cpu")) is torch.bfloat16
    for first in range(0, len(rows), _BATCH_ROWS):
        own = order[first : first + _BATCH_ROWS]
        columns = {name: [values[row] for row in own] for name, values in encoded.items()}
        batch = tokenizer.pad(columns, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            found[own] = classifier(**batch).logits.float().numpy()
    return found


def mean_length(tokenizer: Path, rows: Sequence[tuple[str, ...]]) -> float:
    """Return the mean tokens of rows, cut as the stages cut them."""
    encoded = AutoTokenizer.from_pretrained(tokenizer)(
        *map(list, zip(*rows, strict=True)), truncation=True, max_length=LONGEST
    )
    return sum(map(len, encoded["input_ids"])) / len(rows)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
