"""The student's layers one after the other, each fitted on what the student's own layers before it make of the text.

T real tokens of a block, H hidden size of the teacher, h of the student, A heads, D head size, I intermediate size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.models.inherit import factors
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.layers import (
    EncoderLayer,
    attend,
    embed,
    encoder_layers,
    first_state,
    run_attention,
    run_forward,
    run_layer,
)
from tinybert_ds.models.inherit.sums import (
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

V = dict(w.split("=") for w in os.environ.get("VAR", "").split(",") if w)


@dataclass
class LayerReport:
    name: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    teacher: PreTrainedModel
    teacher_layers: list[EncoderLayer]
    student: PreTrainedModel
    student_layers: list[EncoderLayer]
    layer_map: tuple[int, ...]
    ridge: float
    copied: bool

    def block(self, layer):
        return self.teacher_layers[self.layer_map[layer] : self.layer_map[layer + 1]]


@torch.no_grad()
def basis_of(pair: Pair, blocks: Blocks) -> Tensor:
    wanted = set(pair.layer_map)

    def measure(number: int) -> Sums:
        mask = blocks.mask(number)
        state = first_state(pair.teacher, embed(pair.teacher, blocks.batch(number)))
        blocks.keep(number, "teacher", state)
        sums = {}
        for depth in range(pair.layer_map[-1] + 1):
            if depth:
                state = run_layer(pair.teacher_layers[depth - 1], state, mask)
            if depth in wanted:
                wide = state.double()
                sums[f"{depth}"] = wide.T @ wide
                if "centre" in V:
                    sums[f"m{depth}"] = wide.sum(0)
        return sums

    sums = blocks.sum(measure)
    parts = []
    for k in sorted(wanted):
        S = sums[str(k)]
        if "centre" in V:
            m = sums[f"m{k}"]
            S = S - torch.outer(m, m) / blocks.tokens
        parts.append(S / S.trace())
    moments = torch.stack(parts).sum(0)
    width = pair.student.config.hidden_size
    if width == pair.teacher.config.hidden_size:
        return torch.eye(width, dtype=torch.float64)
    return factors.leading_basis(moments, width)


@torch.no_grad()
def fit_embeddings(pair: Pair, blocks: Blocks, basis: Tensor, teacher_first_basis=None) -> None:
    t, s = pair.teacher.base_model.embeddings, pair.student.base_model.embeddings
    g = t.LayerNorm.weight.double()
    for n in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        table = getattr(t, n).weight.double()
        if "embgain" in V:
            table = (table - table.mean(1, keepdim=True)) * g
        getattr(s, n).weight.copy_(table @ basis)
    s.LayerNorm.weight.fill_(1)
    s.LayerNorm.bias.fill_(0)

    def measure(number):
        n = embed(pair.student, blocks.batch(number))
        y = blocks.kept(number, "teacher").double() @ basis
        return norm_sums(n, y, 0.0)

    sums = blocks.sum(measure)
    print("embeddings explain", fit_norm(s.LayerNorm, sums, blocks.tokens))

    def start(number):
        blocks.keep(number, "student", embed(pair.student, blocks.batch(number)))
        return {}

    blocks.sum(start)


@torch.no_grad()
def fit_attention_inputs(pair: Pair, layer: int, blocks: Blocks, basis: Tensor):
    *lower, last = pair.block(layer)
    own = pair.student_layers[layer]
    heads = last.num_heads

    def measure(number: int) -> Sums:
        mask = blocks.mask(number)
        state = blocks.kept(number, "teacher")
        student = advance(pair, layer, number, blocks)
        sums = {f"state_{k}": v for k, v in regression_sums(student, state).items()}
        pooled_act = []
        for one in lower:
            attended = run_attention(one, state, mask)
            forward = run_forward(one, attended.state)
            pooled_act.append(forward.activated.float().square().mean(0).double())
            state = forward.state
        attention = run_attention(last, state, mask)
        x = sums["state_xx"]
        forward = run_forward(last, attention.state)
        blocks.keep(number, "attention_total", attention.total)
        blocks.keep(number, "output_total", forward.total)
        blocks.keep(number, "teacher", forward.state)
        from tinybert_ds.models.inherit.sums import with_one

        x1 = with_one(student)
        for name in ("query", "key", "value", "context"):
            z = getattr(attention, name).double()
            if name != "context":
                sums[name] = x1.T @ z
            zh = z.unflatten(1, (heads, -1))
            sums[f"{name}_moments"] = torch.einsum("tad,tae->ade", zh, zh)
        sums["activity"] = forward.activated.double().square().sum(0)
        return sums

    sums = blocks.sum(measure)
    state_map = solve(Regression(*(sums[f"state_{k}"] for k in ("xx", "xy", "yy"))), ridge=pair.ridge)
    proj = (state_map, explained(Regression(*(sums[f"state_{k}"] for k in ("xx", "xy", "yy"))), state_map))
    xx = sums["state_xx"]
    moments = {n: sums[f"{n}_moments"] / blocks.tokens for n in ("query", "key", "value", "context")}
    out = (last.attention_output.weight.double().T.unflatten(0, (heads, -1))) @ basis  # A, D, h
    contributions = torch.einsum("aij,aio,ajo->a", moments["context"], out, out)
    chosen = factors.choose_heads(contributions, own.num_heads)
    r = own.head_dim
    P = {"query": [], "key": [], "value": []}
    for head, turn in chosen:
        f = factors.score_factors(moments["query"][head], moments["key"][head], r)
        P["query"].append(f.left)
        P["key"].append(f.right)
        P["value"].append(
            factors.value_factors(moments["context" if "ctxv" in V else "value"][head], out[head], r, skipped=turn * r)
        )
    for name, linear in (("query", own.query), ("key", own.key), ("value", own.value)):
        xy = sums[name].unflatten(1, (heads, -1))
        xy = torch.cat([xy[:, head] @ p for (head, _), p in zip(chosen, P[name], strict=True)], 1)
        prior = None
        if pair.copied:
            prior = read_linear(linear)
        write_linear(linear, solve(Regression(xx, xy, xy[0]), ridge=pair.ridge, prior=prior))
    activity = sums["activity"] / blocks.tokens
    importance = activity * (basis.T @ last.output.weight.double()).square().sum(0)
    return proj, importance


def advance(pair: Pair, layer: int, number: int, blocks: Blocks) -> Tensor:
    """Student state that goes into `layer`, kept."""
    state = blocks.kept(number, "student")
    if layer:
        state = run_layer(pair.student_layers[layer - 1], state, blocks.mask(number))
        blocks.keep(number, "student", state)
    return state


def weigh(total):
    return 1 / total.float().var(1, unbiased=False).clamp_min(1e-12)


@torch.no_grad()
def fit_attention_output(pair: Pair, layer: int, blocks: Blocks, basis: Tensor):
    last, own = pair.block(layer)[-1], pair.student_layers[layer]
    mode = V.get("att", "state")

    def context(number):
        x = blocks.kept(number, "student")
        return x, attend(own.query(x), own.key(x), own.value(x), blocks.mask(number), own.num_heads)

    def measure(number):
        x, c = context(number)
        total = blocks.kept(number, "attention_total")
        y = total if mode != "state" else last.attention_norm(total)
        return regression_sums(c, y.double() @ basis - x.double(), weigh(total) if mode == "weighted" else None)

    sums = Regression(**blocks.sum(measure))
    fitted = solve(sums, ridge=pair.ridge, prior=read_linear(own.attention_output) if pair.copied else None)
    write_linear(own.attention_output, fitted)

    def norm(number):
        x, c = context(number)
        y = last.attention_norm(blocks.kept(number, "attention_total")).double() @ basis
        return norm_sums(x + own.attention_output(c), y, own.attention_norm.eps)

    return fit_norm(own.attention_norm, blocks.sum(norm), blocks.tokens), explained(sums, fitted)


@torch.no_grad()
def fit_forward(pair: Pair, layer: int, blocks: Blocks, basis: Tensor, importance):
    last, own = pair.block(layer)[-1], pair.student_layers[layer]
    mode = V.get("ffn", "state")
    size = own.intermediate.out_features
    chosen = factors.choose_neurons(importance, size)
    w1, b1 = last.intermediate.weight[chosen], last.intermediate.bias[chosen]

    def attended(number):
        return run_attention(own, blocks.kept(number, "student"), blocks.mask(number)).state

    def neurons(number):
        y = attended(number)
        t = last.attention_norm(blocks.kept(number, "attention_total"))
        return regression_sums(y, torch.nn.functional.linear(t, w1, b1))

    sums = Regression(**blocks.sum(neurons))
    prior = None
    if pair.copied:
        prior = read_linear(own.intermediate)
    fitted = solve(sums, ridge=pair.ridge, prior=prior)
    neur = explained(sums, fitted)
    pad = size - len(chosen)
    if pad:
        fitted = type(fitted)(torch.nn.functional.pad(fitted.weight, (0, pad)), torch.nn.functional.pad(fitted.bias, (0, pad)))
    write_linear(own.intermediate, fitted)

    def outputs(number):
        y = attended(number)
        total = blocks.kept(number, "output_total")
        tgt = last.output_norm(total) if mode == "state" else total
        return regression_sums(
            own.activation(own.intermediate(y)), tgt.double() @ basis - y.double(), weigh(total) if mode == "weighted" else None
        )

    sums = Regression(**blocks.sum(outputs))
    fitted = solve(sums, ridge=pair.ridge, prior=read_linear(own.output) if pair.copied else None)
    write_linear(own.output, fitted)

    def norm(number):
        forward = run_forward(own, attended(number))
        return norm_sums(forward.total, blocks.kept(number, "teacher").double() @ basis, own.output_norm.eps)

    return fit_norm(own.output_norm, blocks.sum(norm), blocks.tokens), neur


@torch.no_grad()
def inherit(teacher, student, layer_map, blocks: Blocks, ridge=1e-5, B=None):
    import time
    copied = teacher.config.hidden_size == student.config.hidden_size
    pair = Pair(teacher, encoder_layers(teacher), student, encoder_layers(student), layer_map, ridge, copied)
    t0 = time.time()
    basis = basis_of(pair, blocks)
    print("basis", round(time.time() - t0, 1))
    fit_embeddings(pair, blocks, basis)
    projections = []
    for layer in range(len(layer_map) - 1):
        if copied:
            for a in ("query", "key", "value", "attention_output", "attention_norm", "intermediate", "output", "output_norm"):
                getattr(pair.student_layers[layer], a).load_state_dict(getattr(pair.block(layer)[-1], a).state_dict())
        p, importance = fit_attention_inputs(pair, layer, blocks, basis)
        t1=time.time()
        projections.append(p[0])
        a = fit_attention_output(pair, layer, blocks, basis)
        f = fit_forward(pair, layer, blocks, basis, importance)
        print(f"state {layer} projected {p[1]:.4f}; layer {layer + 1}: attended {a[0]:.4f} ctx {a[1]:.4f} neurons {f[1]:.4f} state {f[0]:.4f}", round(time.time() - t0, 1), 's', round(time.time()-t1,1), flush=True)

    def last(number):
        return regression_sums(advance(pair, len(layer_map) - 1, number, blocks), blocks.kept(number, "teacher"))

    sums = Regression(**blocks.sum(last))
    m = solve(sums, ridge=ridge)
    projections.append(m)
    print(f"last state projected {explained(sums, m):.4f}", round(time.time() - t0, 1))
    return projections
