"""A single student started in closed form, as `inherit_all` starts several."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from tinybert_ds.models.inherit import RIDGE, Inheritance, inherit_all
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.sweep import Pupil


def inherit(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layer_map: tuple[int, ...],
    blocks: Blocks,
    *,
    ridge: float = RIDGE,
    columns: Sequence[int] | None = None,
    prior_weight: float | None = None,
) -> Inheritance:
    """Start a student; see `inherit_all` and `Pupil`."""
    (found,) = inherit_all(teacher, [Pupil(student, layer_map, columns, prior_weight)], blocks, ridge=ridge)
    return found
