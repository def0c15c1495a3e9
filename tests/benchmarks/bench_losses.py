"""The fused losses against their published form, forward and backward.

    python tests/benchmarks/bench_losses.py [--rounds 9] [--tokens 4096] [--lengths 128 512 2048] [--head_sizes 26 64]

One layer of 12 heads, teacher heads of 64, float32, full rows; queries and keys are views of what a projection left, as
in a model. The peer "reference" is two matrix products, where and mse_loss and no more; "published" also divides the
scores and adds the mask to them, as the published code does. "auto, gradients only" is what a training step does
that logs nothing. Writes results/losses.csv and prints a table.
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
    extra_peak_mib,
    interleave,
    publish,
    rows_of,
    table,
)
from tinybert_ds.losses import attention_score_loss, gradients_only, hidden_state_loss

HEADS, TEACHER_HEAD = 12, 64
GRADIENTS_ONLY = "auto, gradients only"
REFERENCE, PUBLISHED = "reference", "published"
ATTENTION_VARIANTS = {
    "tiled": {"backend": "tiled"},
    "gram": {"backend": "gram"},
    "auto": {},
    GRADIENTS_ONLY: {},
    "auto, reference padding": {"padding": "reference"},
}


class Scores(NamedTuple):
    """Inputs of the attention loss: (B, A, S, D) as the projections of a model leave them, mask (B, S) of ones."""

    student_query: Tensor
    student_key: Tensor
    teacher_query: Tensor
    teacher_key: Tensor
    mask: Tensor


def split_heads(projected: Tensor) -> Tensor:
    """Return what a projection left, (B, S, A·D), by heads (B, A, S, D), as a view."""
    return projected.unflatten(-1, (HEADS, -1)).transpose(1, 2)


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

    def draw(size: int) -> Tensor:
        return torch.randn(batch, length, HEADS * size, generator=generator)

    student = [draw(student_head).requires_grad_() for _ in range(2)]
    teacher = [split_heads(draw(TEACHER_HEAD)) for _ in range(2)]
    mask = torch.ones(batch, length, dtype=torch.int64)
    scalings = {"student_scaling": student_head**-0.5, "teacher_scaling": TEACHER_HEAD**-0.5}

    def loss(inputs: Scores) -> Tensor:
        if variant in PEERS:
            return PEERS[variant](inputs)
        with gradients_only() if variant == GRADIENTS_ONLY else nullcontext():
            return attention_score_loss(*inputs, **scalings, **ATTENTION_VARIANTS[variant])

    return lambda: torch.autograd.grad(loss(Scores(*map(split_heads, student), *teacher, mask)), student)


PEERS = {REFERENCE: reference_attention, PUBLISHED: published_attention}


def hidden_pass(variant: str, states: int, tokens: int, student_width: int, teacher_width: int) -> Callable:
    """Return one forward and backward of the hidden-state losses of so many states, projection included."""
    generator = torch.Generator().manual_seed(0)
    students, teachers = (
        [torch.randn(tokens // 128, 128, width, generator=generator) for _ in range(states)]
        for width in (student_width, teacher_width)
    )
    weight = torch.randn(teacher_width, student_width, generator=generator) * 0.02
    bias = torch.zeros(teacher_width)
    wanted = [tensor.requires_grad_() for tensor in (*students, weight, bias)]
    mask = torch.ones(tokens // 128, 128, dtype=torch.int64)

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        if variant == PUBLISHED:
            return F.mse_loss(F.linear(student, weight, bias), teacher)
        return hidden_state_loss(student, teacher, weight, bias, mask)

    def run() -> object:
        total = sum((loss(*pair) for pair in zip(students, teachers, strict=True)), torch.zeros(()))
        return torch.autograd.grad(total, wanted)

    return run


def measure(
    case: str,
    build: Callable,
    variants: Sequence[str],
    sizes: Sequence[int],
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


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Time the losses against their published form.", allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048], help="sequence lengths")
    parser.add_argument("--head_sizes", type=int, nargs="+", default=[26, 64], help="head sizes of the student")
    parser.add_argument(
        "--no_memory", action="store_true", help="leave out the peaks in fresh processes, taken at the greatest length"
    )
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of the README")
    parser.add_argument("--out", type=Path, default=RESULTS / "losses.csv")
    parser.add_argument("--plot", action="store_true", help="draw the ratios beside the CSV (needs matplotlib)")
    values = parser.parse_args(arguments)
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
    publish(rows, values.out, readme=values.readme, plotted=values.plot)
    return rows


if __name__ == "__main__":
    main()
