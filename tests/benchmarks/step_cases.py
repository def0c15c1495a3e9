"""What a step is timed on: samples of some lengths, and two models with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertModel

from tinybert_ds.data.batching import RowLayout, Rows, plan_window, step_batches
from tinybert_ds.models.build import STUDENTS_DIR
from tinybert_ds.types import Batch


@dataclass(frozen=True)
class Case:
    """Which samples a pass takes, and with what dropout."""

    name: str
    rows: int  # of a step
    steps: int
    shortest: int
    longest: int
    dropout: float = 0.0

    @property
    def samples(self) -> int:
        return self.rows * self.steps

    def lengths(self) -> np.ndarray:
        """Return the samples' lengths, evenly spread and shuffled."""
        spread = np.linspace(self.shortest, self.longest, self.samples).round().astype(np.int64)
        return np.random.default_rng(0).permutation(spread)


CASES = {
    case.name: case
    for case in (
        Case("full_128", 16, 1, 128, 128),
        Case("full_128_dropout", 16, 1, 128, 128, dropout=0.1),
        Case("full_512", 4, 1, 512, 512),
        Case("mixed_128", 16, 16, 16, 128),
        Case("mixed_512", 4, 16, 64, 512),
        Case("gpu_128", 256, 1, 128, 128, dropout=0.1),
        Case("gpu_mixed_128", 256, 8, 16, 128, dropout=0.1),
        Case("gpu_512", 64, 1, 512, 512, dropout=0.1),
        Case("gpu_task_64", 32, 1, 57, 64, dropout=0.1),
        Case("tiny", 2, 2, 4, 16),
    )
}


class Sizes(NamedTuple):
    """Width, layers and width of the feed-forward layers of a model."""

    width: int
    layers: int
    intermediate: int


SIZES = {"usual": (Sizes(768, 12, 3072), None), "tiny": (Sizes(48, 4, 64), Sizes(24, 2, 32))}
"""Teacher and student; None: the shipped 4L_312."""


class Models(NamedTuple):
    """What both sides start from."""

    teacher: BertModel
    student: BertModel
    projection: nn.Linear  # the published form has one for all states


def build_models(sizes: str, dropout: float) -> Models:
    """Return seeded random models."""
    teacher, student = SIZES[sizes]
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}

    def config(size: Sizes) -> BertConfig:
        return BertConfig(
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=12,
            intermediate_size=size.intermediate,
            **dropouts,
        )

    torch.manual_seed(0)
    if student is None:
        student_config = BertConfig.from_json_file(STUDENTS_DIR / "4L_312.json")
        student_config.update(dropouts)
    else:
        student_config = config(student)
    return Models(
        BertModel(config(teacher)), BertModel(student_config), nn.Linear(student_config.hidden_size, teacher.width)
    )


def batches_of(case: Case, *, bins: bool) -> Iterator[Batch]:
    """Yield the case's steps: through the length bins, or in order and padded to the longest sample of all."""
    lengths = case.lengths()
    layout = RowLayout("valid" if bins else "reference", case.longest, pad_id=0)
    ends = np.cumsum(lengths)
    tokens = np.random.default_rng(1).integers(1000, 30000, int(ends[-1]))

    def fetch(rows: np.ndarray) -> Rows:
        flat = np.concatenate([tokens[ends[row] - lengths[row] : ends[row]] for row in rows])
        return Rows(flat, lengths[rows], lengths[rows] // 2, rows)

    steps = plan_window(lengths, case.rows, key=0) if bins else np.split(np.arange(case.samples), case.steps)
    for step in steps:
        yield from step_batches(step, lengths, fetch, layout, rank=0, world_size=1, accumulation=1)
