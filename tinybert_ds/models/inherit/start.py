"""The student's coordinates and its embeddings: the basis in which it keeps the teacher's states.

T real tokens of a block, H hidden size of the teacher, h of the student, E size of the teacher's embeddings.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.factors import away_from_the_mean, leading_basis
from tinybert_ds.models.inherit.layers import (
    embed,
    embeddings_projection,
    encoder_layers,
    first_state,
    run_layer,
    tables,
)
from tinybert_ds.models.inherit.sums import (
    NORM_TOKENS,
    LinearMap,
    Regression,
    Sums,
    explained,
    fit_norm,
    norm_sums,
    regression_sums,
    solve,
    write_linear,
)

BASIS_TOKENS = 64
"""For each dimension of the teacher: more of them hardly move its leading directions."""


def second_moments(teacher: PreTrainedModel, blocks: Blocks, depths: Collection[int]) -> dict[int, Tensor]:
    """Return the second moments (H, H) of the teacher's states of these depths, over a part of the text."""
    if not depths:
        return {}
    layers = encoder_layers(teacher)

    def measure(number: int) -> Sums:
        state, mask = first_state(teacher, embed(teacher, blocks.batch(number))), blocks.mask(number)
        sums = {}
        for depth in range(max(depths) + 1):
            state = run_layer(layers[depth - 1], state, mask) if depth else state
            if depth in depths:
                wide = state.double()
                sums[str(depth)] = wide.T @ wide
        return sums

    sums = blocks.sum(measure, up_to_tokens=BASIS_TOKENS * teacher.config.hidden_size)
    return {int(depth): moments for depth, moments in sums.items()}


def state_basis(moments: Sequence[Tensor], width: int) -> Tensor:
    """Return the directions (H, h) in which a student of width h keeps the teacher's states.

    They are the leading eigenvectors of the second moments of the states that its layer map names, each state weighed
    equally.
    """
    total = torch.stack([each / each.trace().clamp_min(1e-300) for each in moments]).sum(0)
    return away_from_the_mean(leading_basis(total, width))


def own_basis(
    teacher: PreTrainedModel, student: PreTrainedModel, blocks: Blocks, layer_map: tuple[int, ...], *, ridge: float
) -> tuple[LinearMap, float]:
    """Return the coordinates in which a student that has weights keeps its teacher's states.

    Returns:
        The map (H, h) from the teacher's mapped states to the student's, one for all of them, each weighed equally;
        and the share of the variance of the student's states that it explains.
    """
    sources, targets = encoder_layers(teacher), encoder_layers(student)

    def measure(number: int) -> Sums:
        batch, mask = blocks.batch(number), blocks.mask(number)
        state, own = first_state(teacher, embed(teacher, batch)), first_state(student, embed(student, batch))
        sums: Sums = {}
        for depth, mapped in enumerate(layer_map):
            if depth:
                own = run_layer(targets[depth - 1], own, mask)
                for layer in sources[layer_map[depth - 1] : mapped]:
                    state = run_layer(layer, state, mask)
            sums |= {f"{name}{depth}": value for name, value in regression_sums(state, own).items()}
        return sums

    sums = blocks.sum(measure, up_to_tokens=BASIS_TOKENS * teacher.config.hidden_size)
    weights = [1 / sums[f"yy{depth}"].sum() for depth in range(len(layer_map))]
    weighed = {
        name: torch.stack([weight * sums[f"{name}{depth}"] for depth, weight in enumerate(weights)]).sum(0)
        for name in Regression._fields
    }
    total = Regression(**weighed)
    fitted = solve(total, ridge=ridge)
    blocks.agree(list(fitted))
    return fitted, explained(total, fitted)


def start_embeddings(
    teacher: PreTrainedModel, student: PreTrainedModel, blocks: Blocks, basis: Tensor, *, ridge: float
) -> None:
    """Write the student's embeddings, so that its state 0 is the teacher's in the student's coordinates.

    Tables are the teacher's times the basis, the gain and bias of their LayerNorm fitted. Embeddings that a linear
    layer follows (ELECTRA) have a basis of their own, and that layer is fitted.
    """
    projection = embeddings_projection(student)
    inner = basis if projection is None else _embedding_basis(teacher, student, blocks)
    norm: Any = student.base_model.embeddings.LayerNorm
    _write_tables(teacher, student, inner)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)

    def normalised(number: int) -> Sums:
        batch = blocks.batch(number)
        return norm_sums(embed(student, batch), embed(teacher, batch).double() @ inner)

    fit_norm(norm, blocks.sum(normalised, up_to_tokens=NORM_TOKENS))
    if projection is not None:

        def projected(number: int) -> Sums:
            batch = blocks.batch(number)
            target = first_state(teacher, embed(teacher, batch)).double() @ basis
            return regression_sums(embed(student, batch), target)

        write_linear(projection, solve(Regression(**blocks.sum(projected)), ridge=ridge))
    blocks.agree([*norm.parameters(), *(projection.parameters() if projection is not None else ())])


def _embedding_basis(teacher: PreTrainedModel, student: PreTrainedModel, blocks: Blocks) -> Tensor:
    """Return the directions (E, e) in which the student keeps the teacher's embeddings."""
    tables_of = [model.get_input_embeddings().weight for model in (teacher, student)]
    own, width = (table.shape[1] for table in tables_of)
    if own == width:
        return torch.eye(own, dtype=torch.float64, device=blocks.device)

    def measure(number: int) -> Sums:
        wide = embed(teacher, blocks.batch(number)).double()
        return {"moments": wide.T @ wide}

    basis = leading_basis(blocks.sum(measure, up_to_tokens=BASIS_TOKENS * own)["moments"], width)
    blocks.agree([basis])
    return basis


def _write_tables(teacher: PreTrainedModel, student: PreTrainedModel, basis: Tensor) -> None:
    """Write the student's tables: the teacher's in the basis, in the rows that stand for the same thing.

    The teacher's LayerNorm takes the mean out of their sum and multiplies it by its gain. Both are linear and go into
    narrower tables, because the student's gain works along other axes.
    """
    source, target = tables(teacher), tables(student)
    if basis.shape[0] != basis.shape[1]:
        norm: Any = teacher.base_model.embeddings.LayerNorm
        weighed = norm.weight.double()[:, None] * basis
        basis = weighed - weighed.mean(0)
    target.words.copy_(source.words.double() @ basis)
    positions = source.positions[source.first_position :].double() @ basis
    for kinds, own in ((source.types, target.types), (source.tasks, target.tasks)):
        rows = None if kinds is None else kinds.double() @ basis
        if own is None and rows is not None:
            positions = positions + rows[0]  # every text is of the first kind for a model without kinds
        elif own is not None and rows is not None:
            own.copy_(rows[torch.arange(len(own), device=rows.device).clamp_max(len(rows) - 1)])
        elif own is not None:
            own.zero_()
    count = len(target.positions) - target.first_position
    target.positions.zero_()
    target.positions[target.first_position :] = positions[:count].to(target.positions.dtype)
