"""The fused losses against their published form, forward and backward.

    python tests/benchmarks/bench_losses.py [--rounds 9] [--tokens 4096] [--lengths 128 512 2048] [--head_sizes 26 64]
    python tests/benchmarks/bench_losses.py --relations [--widths 312 768] [--rounds 9] [--tokens 4096]

One layer of 12 heads, teacher heads of 64, float32, full rows; queries and keys are views of what a projection left, as
in a model. The peer "reference" is two matrix products, where and mse_loss and no more; "published" also divides the
scores and adds the mask to them, as the published code does. "auto, gradients only" is what a training step does
that logs nothing. Writes results/losses.csv and prints a table.

With --relations: the two forms of the relation loss of one layer against the same in plain PyTorch ("plain": whole
relations, the teacher's without a graph), in as many relation heads as is the default for the two widths. Writes
results/relations.csv.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import (
    RESULTS,
    Row,
    default_device,
    extra_peak_mib,
    interleave,
    publish,
    rows_of,
    table,
)
from tinybert_ds.losses import (
    attention_score_loss,
    choose_relation_heads,
    gradients_only,
    hidden_state_loss,
    relation_loss,
)

HEADS, TEACHER_HEAD = 12, 64
GRADIENTS_ONLY = "auto, gradients only"
REFERENCE, PUBLISHED, PLAIN = "reference", "published", "plain"
ATTENTION_VARIANTS = {
    "tiled": {"backend": "tiled"},
    "gram": {"backend": "gram"},
    "auto": {},
    GRADIENTS_ONLY: {},
    "auto, reference padding": {"padding": "reference"},
}
RELATION_VARIANTS = {name: options for name, options in ATTENTION_VARIANTS.items() if name.startswith("auto")}


class Scores(NamedTuple):
    """Inputs of the attention loss: (B, A, S, D) as the projections of a model leave them, mask (B, S) of ones."""

    student_query: Tensor
    student_key: Tensor
    teacher_query: Tensor
    teacher_key: Tensor
    mask: Tensor


def split_heads(projected: Tensor, heads: int = HEADS) -> Tensor:
    """Return what a projection left, (B, S, A·D), by heads (B, A, S, D), as a view."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def reference_attention(inputs: Scores) -> Tensor:
    """Return the loss by two matrix products, where and mse_loss."""

    def scores(query: Tensor, key: Tensor) -> Tensor:
        found = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return torch.where(found <= -1e2, torch.zeros_like(found), found)

    student = scores(inputs.student_query, inputs.student_key)
    return F.mse_loss(student, scores(inputs.teacher_query, inputs.teacher_key))


def published_attention(inputs: Scores) -> Tensor:
    """Return the loss by whole score matrices: the published cut-off on each side, then the mean of squares."""

    def scores(query: Tensor, key: Tensor) -> Tensor:
        masked = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        masked = masked + (1.0 - inputs.mask[:, None, None, :].to(masked.dtype)) * -10000.0
        return torch.where(masked <= -1e2, torch.zeros_like(masked), masked)

    student = scores(inputs.student_query, inputs.student_key)
    return F.mse_loss(student, scores(inputs.teacher_query, inputs.teacher_key))


def attention_pass(variant: str, tokens: int, length: int, student_head: int) -> Callable[[], object]:
    """Return one forward and backward of the attention loss in a variant, on seeded inputs in rows of `length`."""
    generator = torch.Generator().manual_seed(0)
    batch = max(1, tokens // length)

    device = default_device()

    def draw(size: int) -> Tensor:
        return torch.randn(batch, length, HEADS * size, generator=generator).to(device)

    student = [draw(student_head).requires_grad_() for _ in range(2)]
    teacher = [split_heads(draw(TEACHER_HEAD)) for _ in range(2)]
    mask = torch.ones(batch, length, dtype=torch.int64, device=device)
    scalings = {"student_scaling": student_head**-0.5, "teacher_scaling": TEACHER_HEAD**-0.5}

    def loss(inputs: Scores) -> Tensor:
        if variant in PEERS:
            return PEERS[variant](inputs)
        with gradients_only() if variant == GRADIENTS_ONLY else nullcontext():
            return attention_score_loss(*inputs, **scalings, **ATTENTION_VARIANTS[variant])

    return lambda: torch.autograd.grad(loss(Scores(*map(split_heads, student), *teacher, mask)), student)


PEERS = {REFERENCE: reference_attention, PUBLISHED: published_attention}


def plain_relations(student: Tensor, teacher: Tensor, mask: Tensor, form: str) -> Tensor:
    """Return the relation loss of vectors by relation heads (B, R, S, d_r) by whole relations."""
    padded = ~mask.bool()[:, None, None, :]

    def scores(states: Tensor) -> Tensor:
        return (states @ states.transpose(-1, -2) / math.sqrt(states.shape[-1])).masked_fill(padded, float("-inf"))

    with torch.no_grad():
        target = scores(teacher) if form == "scores" else F.softmax(scores(teacher), dim=-1)
    if form == "scores":
        return F.mse_loss(scores(student), target)  # of rows without padding
    rows = mask.sum() * student.shape[1]
    return F.kl_div(F.log_softmax(scores(student), dim=-1), target, reduction="sum") / rows


def relation_pass(
    variant: str, form: str, tokens: int, length: int, student_width: int, teacher_width: int
) -> Callable[[], object]:
    """Return one forward and backward of a form of the relation loss, on seeded inputs in rows of `length`."""
    generator = torch.Generator().manual_seed(0)
    batch = max(1, tokens // length)
    device = default_device()
    student, teacher = (
        torch.randn(batch, length, width, generator=generator).to(device) for width in (student_width, teacher_width)
    )
    student.requires_grad_()
    mask = torch.ones(batch, length, dtype=torch.int64, device=device)
    heads = choose_relation_heads(student_width, teacher_width)

    def run() -> object:
        if variant == PLAIN:
            loss = plain_relations(split_heads(student, heads), split_heads(teacher, heads), mask, form)
        else:
            captured = split_heads(student), split_heads(teacher)
            with gradients_only() if variant == GRADIENTS_ONLY else nullcontext():
                loss = relation_loss(*captured, mask, relation_heads=heads, form=form, **RELATION_VARIANTS[variant])
        return torch.autograd.grad(loss, student)

    return run


def hidden_pass(variant: str, states: int, tokens: int, student_width: int, teacher_width: int) -> Callable:
    """Return one forward and backward of the hidden-state losses of so many states, projection included."""
    generator, device = torch.Generator().manual_seed(0), default_device()
    students, teachers = (
        [torch.randn(tokens // 128, 128, width, generator=generator).to(device) for _ in range(states)]
        for width in (student_width, teacher_width)
    )
    weight = torch.randn(teacher_width, student_width, generator=generator).to(device) * 0.02
    bias = torch.zeros(teacher_width, device=device)
    wanted = [tensor.requires_grad_() for tensor in (*students, weight, bias)]
    mask = torch.ones(tokens // 128, 128, dtype=torch.int64, device=device)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        if variant == PUBLISHED:
            return F.mse_loss(F.linear(student, weight, bias), teacher)
        return hidden_state_loss(student, teacher, weight, bias, mask)

    def run() -> object:
        total = sum((loss(*pair) for pair in zip(students, teachers, strict=True)), torch.zeros((), device=device))
        return torch.autograd.grad(total, wanted)

    return run


def measure(
    case: str,
    build: Callable,
    variants: Sequence[str],
    sizes: Sequence[int | str],
    *,
    rounds: int,
    memory: bool,
    peer: str = PUBLISHED,
) -> list[Row]:
    """Return the rows of one case: every variant interleaved with the peer."""
    names = [peer, *variants]
    seconds = interleave({name: build(name, *sizes) for name in names}, rounds)
    extra = {name: extra_peak_mib(build, name, *sizes) for name in names} if memory else {}
    peers = dict.fromkeys(variants, peer)
    found = rows_of("losses", case, seconds, peers=peers, extra_mib=extra)
    print(table(found), flush=True)
    return found


def loss_rows(values: argparse.Namespace) -> list[Row]:
    """Return the rows of all losses but the relations, for the command's arguments."""
    rows: list[Row] = []
    for head in values.head_sizes:
        for length in values.lengths:
            case = f"attention, heads of {head}, rows of {length}"
            sizes = (values.tokens, length, head)
            memory = length == max(values.lengths) and not values.no_memory
            variants = (PUBLISHED, *ATTENTION_VARIANTS)
            rows += measure(case, attention_pass, variants, sizes, rounds=values.rounds, memory=memory, peer=REFERENCE)
    how = {"rounds": values.rounds, "memory": not values.no_memory}
    sizes = (5, values.tokens, 312, 768)
    rows += measure("hidden states, 5 of 312 to 768", hidden_pass, ["chunked"], sizes, **how)
    return rows


def relation_rows(values: argparse.Namespace) -> list[Row]:
    """Return the rows of both forms of the relation loss, for the command's arguments."""
    rows: list[Row] = []
    for form in ("kl", "scores"):
        for length in values.lengths:
            case = f"relations, {form}, rows of {length}"
            sizes = (form, values.tokens, length, *values.widths)
            memory = length == max(values.lengths) and not values.no_memory
            variants = list(RELATION_VARIANTS)
            rows += measure(case, relation_pass, variants, sizes, rounds=values.rounds, memory=memory, peer=PLAIN)
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Time the losses against their published form.", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048], help="sequence lengths")
    parser.add_argument("--head_sizes", type=int, nargs="+", default=[26, 64], help="head sizes of the student")
    parser.add_argument("--relations", action="store_true", help="time the relation losses and nothing else")
    parser.add_argument(
        "--widths", type=int, nargs=2, default=[312, 768], help="width of the student and the teacher, for --relations"
    )
    parser.add_argument(
        "--no_memory", action="store_true", help="leave out the peaks in fresh processes, taken at the greatest length"
    )
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of the README")
    parser.add_argument("--out", type=Path, help="CSV; results/losses.csv, or relations.csv")
    parser.add_argument("--plot", action="store_true", help="draw the ratios beside the CSV (needs matplotlib)")
    values = parser.parse_args(arguments)
    rows = relation_rows(values) if values.relations else loss_rows(values)
    out = values.out or RESULTS / ("relations.csv" if values.relations else "losses.csv")
    publish(rows, out, readme=values.readme, plotted=values.plot)
    return rows


if __name__ == "__main__":
    main()
