"""One layer of the student after the other, each fitted on what the student's own layers before it make of the text.

T real tokens of a block, H hidden size of the teacher, h of the student, A heads, D head size, I intermediate size.
A student's layer stands for a group of consecutive layers of the teacher: queries, keys, values and neurons are those
of the group's last layer, the state after it is the group's last state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.factors import (
    Factors,
    choose_heads,
    choose_neurons,
    score_factors,
    turn_towards,
    value_factors,
)
from tinybert_ds.models.inherit.layers import EncoderLayer, attend, run_attention, run_forward, run_layer
from tinybert_ds.models.inherit.sums import (
    NORM_TOKENS,
    LinearMap,
    NormPrior,
    Regression,
    Sums,
    explained,
    fit_norm,
    norm_sums,
    read_linear,
    regression_sums,
    solve,
    write_linear,
)

_STATES = ("query", "key", "value")


@dataclass(frozen=True)
class Task:
    """What the fits of all layers read."""

    teacher_layers: list[EncoderLayer]
    student_layers: list[EncoderLayer]
    layer_map: tuple[int, ...]
    blocks: Blocks
    basis: Tensor  # (H, h) of the student's coordinates
    ridge: float
    offset: Tensor | float = 0.0  # (h,) of the student's coordinates
    prior_weight: float | None = None  # how strongly the student keeps weights that it has; None: it has none
    number: int = 0  # of the student among those that are started together
    copied: frozenset[nn.Module] = frozenset()  # the student's linear layers that have the teacher's weights

    @property
    def kept(self) -> str:
        """The name under which the blocks keep the student's states."""
        return f"student{self.number}"

    @property
    def same_width(self) -> bool:
        """Whether a new student has its teacher's coordinates."""
        return self.prior_weight is None and self.basis.shape[0] == self.basis.shape[1]

    def group(self, layer: int) -> list[EncoderLayer]:
        """The teacher's layers that a layer of the student stands for."""
        return self.teacher_layers[self.layer_map[layer] : self.layer_map[layer + 1]]

    def parts(self, layer: int) -> tuple[EncoderLayer, EncoderLayer]:
        """The last layer of that group and the student's own layer."""
        return self.group(layer)[-1], self.student_layers[layer]

    def seen(self, states: Tensor) -> Tensor:
        """The teacher's states (T, H) in the student's coordinates, float32 (T, h)."""
        seen = states.float() @ self.basis.float()
        return seen if self.prior_weight is None else seen + torch.as_tensor(self.offset).to(seen)

    def prior(self, linear: nn.Linear) -> LinearMap | None:
        """What a fit keeps to: the weights that were copied from the teacher."""
        return read_linear(linear) if linear in self.copied else None

    def fit(self, regression: Regression, linear: nn.Linear) -> LinearMap:
        """Return the map for a linear layer, near its weights where those are copied or the student's own."""
        if self.prior_weight is None:
            return solve(regression, ridge=self.ridge, prior=self.prior(linear))
        return solve(regression, ridge=self.prior_weight, prior=read_linear(linear))

    def write(self, linear: nn.Linear, fitted: LinearMap) -> None:
        """Write a map into a linear layer of the student, the same one on every rank."""
        write_linear(linear, fitted)
        self.blocks.agree(list(linear.parameters()))


def fit_chosen(task: Task, linear: nn.Linear, regression: Regression, *, ridge: float) -> float:
    """Fit a linear layer to the chosen outputs of one of the teacher's; return the share of their variance explained.

    Outputs beyond them, which the teacher does not have, stay as they were drawn: at 0 they would never learn.
    """
    count, own = len(regression.yy), read_linear(linear)
    prior = task.prior(linear)
    if prior is not None:
        prior = LinearMap(prior.weight[:, :count], prior.bias[:count])
    fitted = solve(regression, ridge=ridge, prior=prior)
    weight, bias = torch.cat([fitted.weight, own.weight[:, count:]], 1), torch.cat([fitted.bias, own.bias[count:]])
    task.write(linear, LinearMap(weight, bias))
    return explained(regression, fitted)


class LayerReport(NamedTuple):
    """What a layer of the student explains of the teacher's variance, and which of its heads it has."""

    attention: float  # of the state after the attention, in the student's coordinates
    neurons: float | None  # of the chosen neurons' inputs; None: they are the student's own
    state: float  # of the state after the layer, in the student's coordinates
    heads: tuple[int, ...]


def fit_layer(task: Task, layer: int, group_sums: Sums) -> LayerReport:
    """Fit a layer of the student; the states that go into it are kept by then.

    Args:
        task: The models and the text.
        layer: From 0.
        group_sums: Of its place in the sweep: "state_..." of the state that goes into it, "products" of that state with
            the one that goes into the teacher's last layer of the group, and what is known of that layer.
    """
    heads = _fit_attention_inputs(task, layer, group_sums)
    attention = _fit_attention_output(task, layer)
    neurons = None if task.prior_weight is not None else _fit_neurons(task, layer, group_sums["activity"])
    state = _fit_output(task, layer)
    return LayerReport(attention, neurons, state, heads)


def run_last_layer(blocks: Blocks, number: int, last: EncoderLayer, state: Tensor) -> Sums:
    """Run the last layer of a group of the teacher's, keep what fits compare with, and sum up what is known of it.

    Args:
        number: Of the block.
        state: (T, H) that goes into the layer.
    """
    mask = blocks.mask(number)
    attention = run_attention(last, state, mask)
    forward = run_forward(last, attention.state)
    blocks.keep(number, "attention_total", attention.total)
    blocks.keep(number, "output_total", forward.total)
    blocks.keep(number, "teacher", forward.state)
    sums: Sums = {"activity": forward.activated.float().square().sum(0).double()}
    for name in (*_STATES, "context"):
        by_head = getattr(attention, name).double().unflatten(1, (last.num_heads, -1))
        sums[f"{name}_moments"] = torch.einsum("tad,tae->ade", by_head, by_head)
    return sums


def advance(task: Task, layer: int, number: int) -> Tensor:
    """Return the student's states (T, h) that go into a layer and keep them in the place of those before."""
    state = task.blocks.kept(number, task.kept)
    if layer:
        state = run_layer(task.student_layers[layer - 1], state, task.blocks.mask(number))
        task.blocks.keep(number, task.kept, state)
    return state


def state_sums(student: Tensor, teacher: Tensor) -> Sums:
    """Return the sums of the regression from the student's states to the teacher's: the projection of a state."""
    return {f"state_{name}": value for name, value in regression_sums(student, teacher).items()}


def fit_projection(task: Task, sums: Sums) -> tuple[LinearMap, float]:
    """Return the projection of a state from the sums of `state_sums`, and the share of variance that it explains."""
    regression = Regression(*(sums[f"state_{name}"] for name in Regression._fields))
    prior = LinearMap(task.basis, torch.zeros_like(task.basis[0])) if task.same_width else None
    fitted = solve(regression, ridge=task.ridge, prior=prior)
    return fitted, explained(regression, fitted)


def _fit_attention_inputs(task: Task, layer: int, sums: Sums) -> tuple[int, ...]:
    """Fit queries, keys and values to low-rank factors of the teacher's; return the teacher's head of each head."""
    last, own = task.parts(layer)
    moments = {name: sums[f"{name}_moments"] / task.blocks.tokens for name in (*_STATES, "context")}
    outgoing = last.attention_output.weight.double().T.unflatten(0, (last.num_heads, -1)) @ task.basis  # (A, D, h)
    contributions = torch.einsum("aij,aih,ajh->a", moments["context"], outgoing, outgoing)
    chosen = choose_heads(contributions, own.num_heads)
    columns: dict[str, list[Tensor]] = {name: [] for name in _STATES}
    by_head = {name: _products_with(getattr(last, name), sums["products"], last.num_heads) for name in _STATES}
    for place, (head, turn) in enumerate(chosen):
        scores = score_factors(moments["query"][head], moments["key"][head], own.head_dim)
        skipped = turn * own.head_dim
        value = value_factors(moments["value"][head], outgoing[head], own.head_dim, skipped=skipped)
        if task.prior_weight is not None:
            wanted = [_own_products(getattr(own, n), by_head[n][:, head], own.num_heads, place) for n in _STATES]
            scores = Factors(*turn_towards(scores, wanted[:2]))
            (value,) = turn_towards([value], wanted[2:])
        for name, factor in zip(_STATES, (*scores, value), strict=True):
            columns[name].append(by_head[name][:, head] @ factor)
    for name, products in columns.items():
        linear = getattr(own, name)
        xy = torch.cat(products, dim=1)
        fitted = task.fit(Regression(sums["state_xx"], xy, torch.zeros_like(xy[0])), linear)
        task.write(linear, fitted if name == "key" else _as_drawn(linear, fitted, (xy == 0).all(0)))
    return tuple(head for head, _ in chosen)


def _as_drawn(linear: nn.Linear, fitted: LinearMap, spare: Tensor) -> LinearMap:
    """Leave a linear layer the weights of the outputs (Q,) that the teacher has nothing for.

    Were queries and keys both 0 there, or values and what is made of them, no gradient would reach either.
    """
    own = read_linear(linear)
    return LinearMap(torch.where(spare, own.weight, fitted.weight), torch.where(spare, own.bias, fitted.bias))


def _products_with(linear: nn.Linear, products: Tensor, num_heads: int) -> Tensor:
    """Return the products (P + 1, A, D) of features with what a linear layer makes of states.

    Args:
        products: (P + 1, H + 1) of the features with the states; a constant 1 stands behind both.
    """
    made = read_linear(linear)
    return (products @ torch.cat([made.weight, made.bias[None]])).unflatten(1, (num_heads, -1))


def _own_products(linear: nn.Linear, products: Tensor, num_heads: int, head: int) -> Tensor:
    """Return the products (D, R) of a teacher's head with what a student's makes of its states at present.

    Args:
        products: (P + 1, D) of the student's states and a constant 1 with the teacher's head.
    """
    own = read_linear(linear)
    weight = torch.cat([own.weight, own.bias[None]]).unflatten(1, (num_heads, -1))[:, head]
    return products.T @ weight


def _fit_attention_output(task: Task, layer: int) -> float:
    """Fit the output matrix and the LayerNorm behind it; return the share of variance explained."""
    last, own = task.parts(layer)
    blocks = task.blocks

    def totals(number: int) -> Sums:
        state = blocks.kept(number, task.kept)
        query, key, value = own.query(state), own.key(state), own.value(state)
        context = attend(query, key, value, blocks.mask(number), own.num_heads)
        target = blocks.kept(number, "attention_total")
        return regression_sums(context, task.seen(target) - state, _certainty(target))

    def states(number: int) -> Sums:
        normalised = run_attention(own, blocks.kept(number, task.kept), blocks.mask(number)).state
        return norm_sums(normalised, task.seen(last.attention_norm(blocks.kept(number, "attention_total"))))

    return _fit_addition(task, own.attention_output, own.attention_norm, totals, states)


def _fit_neurons(task: Task, layer: int, activity: Tensor) -> float:
    """Fit the inputs of the neurons that matter most; return the share of their variance explained."""
    last, own = task.parts(layer)
    blocks = task.blocks
    outgoing = (task.basis.T @ last.output.weight.double()).square().sum(0)
    chosen = choose_neurons(activity * outgoing, own.intermediate.out_features)
    weight, bias = last.intermediate.weight[chosen], last.intermediate.bias[chosen]

    def inputs(number: int) -> Sums:
        attended = last.attention_norm(blocks.kept(number, "attention_total"))
        return regression_sums(_attended(task, layer, number), F.linear(attended, weight, bias))

    return fit_chosen(task, own.intermediate, Regression(**blocks.sum(inputs)), ridge=task.ridge)


def _fit_output(task: Task, layer: int) -> float:
    """Fit what the neurons put out and the LayerNorm behind it; return the share of variance explained."""
    _, own = task.parts(layer)
    blocks = task.blocks

    def totals(number: int) -> Sums:
        attended = _attended(task, layer, number)
        target = blocks.kept(number, "output_total")
        activated = own.activation(own.intermediate(attended))
        return regression_sums(activated, task.seen(target) - attended, _certainty(target))

    def states(number: int) -> Sums:
        normalised = run_forward(own, _attended(task, layer, number)).state
        return norm_sums(normalised, task.seen(blocks.kept(number, "teacher")))

    return _fit_addition(task, own.output, own.output_norm, totals, states)


def _fit_addition(
    task: Task, linear: nn.Linear, norm: nn.LayerNorm, totals: Callable[[int], Sums], states: Callable[[int], Sums]
) -> float:
    """Fit what a linear layer adds to a state, and the LayerNorm behind it; return the share of variance explained.

    Args:
        totals: The sums of a block that the linear layer is fitted from.
        states: Those that the LayerNorm is fitted from, once the linear layer is, and without a gain and bias.
    """
    task.write(linear, task.fit(Regression(**task.blocks.sum(totals)), linear))
    prior = None
    if task.prior_weight is not None:
        prior = NormPrior(norm.weight.detach().double(), norm.bias.detach().double(), task.prior_weight)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    share = fit_norm(norm, task.blocks.sum(states, up_to_tokens=NORM_TOKENS), prior)
    task.blocks.agree(list(norm.parameters()))
    return share


def _attended(task: Task, layer: int, number: int) -> Tensor:
    """The student's states (T, h) after the attention of a layer."""
    own = task.student_layers[layer]
    return run_attention(own, task.blocks.kept(number, task.kept), task.blocks.mask(number)).state


def _certainty(total: Tensor) -> Tensor:
    """How much a token (T,) counts before a LayerNorm, which divides what it is off by the token's own deviation."""
    return 1 / total.float().var(dim=1, unbiased=False).clamp_min(1e-12)
