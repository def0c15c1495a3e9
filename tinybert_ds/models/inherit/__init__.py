"""A student started in closed form from its teacher: every layer by least squares, none by gradients.

The student keeps the teacher's states in the coordinates of their leading eigenvectors. Its layers are fitted from the
first to the last on calibration text, each on what the student's own layers before it make of that text, so that
errors do not pile up: queries and keys to the best low-rank factors of the teacher's scores, values to those of what
the heads put out, the strongest neurons, and everything that adds to a state by least squares, each token weighed by
how much the LayerNorm behind it will divide its error. At equal widths and fewer layers the fits start from copied
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.fit import (
    LayerReport,
    Task,
    advance,
    fit_layer,
    fit_projection,
    group_sums,
    state_sums,
)
from tinybert_ds.models.inherit.heads import copy_head, fit_head
from tinybert_ds.models.inherit.layers import EncoderLayer, embed, encoder_layers, first_state
from tinybert_ds.models.inherit.start import own_basis, start_embeddings, state_basis
from tinybert_ds.models.inherit.sums import LinearMap, Sums
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
    """Write weights into a student that make it do what its teacher does, as well as its size allows.

    Args:
        teacher: In any precision, on the device of the blocks, in eval mode.
        student: In float32, on the same device, in eval mode; its weights do not matter without `prior_weight`.
        layer_map: The teacher's state for each state of the student.
        blocks: The calibration text; call this on all of its ranks.
        ridge: What the fits hold against large weights, in relation to the features' mean variance.
        columns: For classifiers, the teacher's output for each of the student's; None: in the same order.
        prior_weight: How strongly a student that has been distilled keeps what it has learnt: the ridge, in relation
            to the features' mean variance, with which the fits hold on to its weights. It stays in its own
            coordinates and keeps its embeddings and neurons, its head is fitted anew. 0 forgets, 1 hardly moves.

    Raises:
        ConfigError, ModelError: See `check_inheritance`.
    """
    check_inheritance(teacher.config, student.config, layer_map)
    with wide_products(teacher, blocks.device):
        models = encoder_layers(teacher), encoder_layers(student), layer_map, blocks
        kept = None
        if prior_weight is None:
            basis = state_basis(teacher, blocks, layer_map, student.config.hidden_size)
            task = Task(*models, basis, ridge)
            start_embeddings(teacher, student, blocks, basis, ridge=ridge)
        else:
            (basis, offset), kept = own_basis(teacher, student, blocks, layer_map, ridge=ridge)
            task = Task(*models, basis, ridge, offset, prior_weight)
        if task.copied:
            for layer, own in enumerate(task.student_layers):
                _copy_layer(task.group(layer)[-1], own)
            copy_head(teacher, student, columns)
        _keep_first_states(teacher, student, blocks)
        maps, shares, reports = [], [], []
        for layer in range(len(layer_map) - 1):
            sums = group_sums(task, layer)
            fitted, share = fit_projection(task, sums)
            maps.append(fitted)
            shares.append(share)
            reports.append(fit_layer(task, layer, sums))
        fitted, share = fit_projection(task, _last_state_sums(task))
        head = fit_head(task, teacher, student, columns)
    return Inheritance(_projections([*maps, fitted]), (*shares, share), tuple(reports), head, kept)


def count_measurements(num_layers: int) -> int:
    """Return about how often `inherit` goes through all blocks, for a progress bar."""
    return 6 * num_layers + 6


def _keep_first_states(teacher: PreTrainedModel, student: PreTrainedModel, blocks: Blocks) -> None:
    def keep(number: int) -> Sums:
        batch = blocks.batch(number)
        for name, model in (("teacher", teacher), ("student", student)):
            blocks.keep(number, name, first_state(model, embed(model, batch)))
        return {}

    blocks.sum(keep)


def _last_state_sums(task: Task) -> Sums:
    def measure(number: int) -> Sums:
        return state_sums(advance(task, len(task.student_layers), number), task.blocks.kept(number, "teacher"))

    return task.blocks.sum(measure)


def _copy_layer(source: EncoderLayer, own: EncoderLayer) -> None:
    """Start a layer of the same width from the teacher's; what has another shape there starts from 0."""
    for name, module in vars(own).items():
        if not isinstance(module, nn.Linear | nn.LayerNorm):
            continue
        for parameter, value in zip(module.parameters(), getattr(source, name).parameters(), strict=True):
            same = parameter.shape == value.shape and own.num_heads == source.num_heads
            parameter.copy_(value if same else torch.zeros_like(parameter))


def _projections(maps: Sequence[LinearMap]) -> dict[str, Tensor]:
    weights = {f"{state}.weight": fitted.weight.T for state, fitted in enumerate(maps)}
    biases = {f"{state}.bias": fitted.bias for state, fitted in enumerate(maps)}
    return {name: value.float().cpu().contiguous() for name, value in (weights | biases).items()}
