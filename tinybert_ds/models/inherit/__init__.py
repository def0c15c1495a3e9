"""A student started in closed form from its teacher: every layer by least squares, none by gradients.

The student keeps the teacher's states in the coordinates of their leading eigenvectors. Its layers are fitted from the
first to the last on calibration text, each on what the student's own layers before it make of that text, so that
errors do not pile up: queries and keys to the best low-rank factors of the teacher's scores, values to those of what
the heads put out, the strongest neurons, and everything that adds to a state by least squares, each token weighed by
how much the LayerNorm behind it will divide its error. At equal widths and fewer layers the fits start from copied
layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.fit import LayerReport, Task
from tinybert_ds.models.inherit.heads import copy_head
from tinybert_ds.models.inherit.layers import EncoderLayer, embed, encoder_layers, first_state
from tinybert_ds.models.inherit.start import own_basis, second_moments, start_embeddings, state_basis
from tinybert_ds.models.inherit.sums import LinearMap, Sums
from tinybert_ds.models.inherit.sweep import Pupil, fit_all
from tinybert_ds.models.wide_products import wide_products

RIDGE = 1e-5
"""In relation to the features' mean variance."""


class Inheritance(NamedTuple):
    """What is known of a student that was started from its teacher."""

    projections: dict[str, Tensor]  # as `saving.load_projections` returns them, one for each state
    states: tuple[float, ...]  # share of each teacher state's variance that its projection explains
    layers: tuple[LayerReport, ...]
    head: float | None  # share of the variance of the teacher's logits (or pooler inputs) that the head explains
    own: float | None = None  # of a student that had weights: share of its states' variance that is its teacher's


@torch.no_grad()
def inherit_all(
    teacher: PreTrainedModel, pupils: Sequence[Pupil], blocks: Blocks, *, ridge: float = RIDGE
) -> list[Inheritance]:
    """Start several students from one pass over their teacher, each as it would be alone.

    Args:
        teacher: In any precision, on the device of the blocks, in eval mode.
        blocks: The calibration text; call this on all of its ranks.
        ridge: What the fits hold against large weights, in relation to the features' mean variance.

    Raises:
        ConfigError, ModelError: See `check_inheritance`.
    """
    for pupil in pupils:
        check_inheritance(teacher.config, pupil.student.config, pupil.layer_map)
    with wide_products(teacher, blocks.device):
        depths = {depth for pupil in pupils if _has_basis(teacher, pupil) for depth in pupil.layer_map}
        moments = second_moments(teacher, blocks, depths)
        begun = [_begin(teacher, pupil, blocks, moments, ridge, number) for number, pupil in enumerate(pupils)]
        tasks = [task for task, _ in begun]
        _keep_first_states(teacher, pupils, tasks, blocks)
        found = fit_all(teacher, pupils, tasks)
    return [
        Inheritance(_projections(each.maps), tuple(each.shares), tuple(each.reports), each.head, kept)
        for each, (_, kept) in zip(found, begun, strict=True)
    ]


def count_measurements(layer_maps: Sequence[tuple[int, ...]]) -> int:
    """Return about how often `inherit_all` goes through all blocks, for a progress bar."""
    return sum(5 * len(layer_map) for layer_map in layer_maps) + max(map(len, layer_maps)) + 1


def _has_basis(teacher: PreTrainedModel, pupil: Pupil) -> bool:
    """Whether a student's coordinates are to be found."""
    return pupil.prior_weight is None and pupil.student.config.hidden_size != teacher.config.hidden_size


def _begin(
    teacher: PreTrainedModel, pupil: Pupil, blocks: Blocks, moments: Mapping[int, Tensor], ridge: float, number: int
) -> tuple[Task, float | None]:
    """Settle a student's coordinates and give it its embeddings; return what the share of `own_basis` is, too."""
    student, layer_map, width = pupil.student, pupil.layer_map, pupil.student.config.hidden_size
    models = encoder_layers(teacher), encoder_layers(student), layer_map, blocks
    if pupil.prior_weight is not None:
        (basis, offset), kept = own_basis(teacher, student, blocks, layer_map, ridge=ridge)
        return Task(*models, basis, ridge, offset, pupil.prior_weight, number), kept
    if _has_basis(teacher, pupil):
        basis = state_basis([moments[depth] for depth in sorted(set(layer_map))], width)
        blocks.agree([basis])
    else:
        basis = torch.eye(width, dtype=torch.float64, device=blocks.device)
    task = Task(*models, basis, ridge, number=number)
    start_embeddings(teacher, student, blocks, basis, ridge=ridge)
    if task.same_width:
        copied = copy_head(teacher, student, pupil.columns)
        for layer, own in enumerate(task.student_layers):
            copied += _copy_layer(task.group(layer)[-1], own)
        task = replace(task, copied=frozenset(copied))
    return task, None


def _keep_first_states(
    teacher: PreTrainedModel, pupils: Sequence[Pupil], tasks: Sequence[Task], blocks: Blocks
) -> None:
    models = [("teacher", teacher), *((task.kept, pupil.student) for pupil, task in zip(pupils, tasks, strict=True))]

    def keep(number: int) -> Sums:
        batch = blocks.batch(number)
        for name, model in models:
            blocks.keep(number, name, first_state(model, embed(model, batch)))
        return {}

    blocks.sum(keep)


def _copy_layer(source: EncoderLayer, own: EncoderLayer) -> list[nn.Module]:
    """Copy a layer's linear layers into one of the same width and heads; return those that have the teacher's shape."""
    found: list[nn.Module] = []
    for name, module in vars(own).items():
        if not isinstance(module, nn.Linear) or own.num_heads != source.num_heads:
            continue
        theirs: nn.Linear = getattr(source, name)
        if module.weight.shape == theirs.weight.shape:
            module.load_state_dict(theirs.state_dict())
            found.append(module)
    return found


def _projections(maps: Sequence[LinearMap]) -> dict[str, Tensor]:
    weights = {f"{state}.weight": fitted.weight.T for state, fitted in enumerate(maps)}
    biases = {f"{state}.bias": fitted.bias for state, fitted in enumerate(maps)}
    return {name: value.float().cpu().contiguous() for name, value in (weights | biases).items()}
