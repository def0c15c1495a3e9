"""How long the Triton kernels take with other blocks and warps than those that are chosen, on a GPU.

    python tests/gpu/sweep.py [KERNEL ...] [--dry]

For each kernel a line for each combination of its launch's options, fastest first, and one for what `compile_options`
chooses, marked "chosen"; what does not fit the GPU is said so. Shapes are those of a step of 256 x 128 from 12 layers
of 768 to 4L_312. --dry: one other combination of each, interpreted on a CPU. What is chosen is in the losses'
`triton_attention.py`, `triton_relations.py` and `triton_hidden.py` and the models' `triton_layer_norm.py` and
`triton_heads.py`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.step import Check


class Sweep(NamedTuple):
    """A kernel's launch, and what may be chosen otherwise for it."""

    module: Any  # whose `compile_options` is asked
    run: Callable[[], object]
    choices: Mapping[str, Sequence[Any]]


def heads_of(check: Check, sizes: tuple[int, int], rows: int, length: int, heads: int = 12) -> Any:
    """Return the problem of a student's and a teacher's heads of some sizes, all tokens real."""
    import torch  # noqa: PLC0415

    from tinybert_ds.losses.reference import Problem  # noqa: PLC0415

    rows, length = (1, 8) if check.dry else (rows, length)
    student, teacher = (
        tuple(torch.randn(rows, length, heads, size, device=check.device).to(dtype).transpose(1, 2) for _ in "qk")
        for size, dtype in zip(sizes, (torch.bfloat16, torch.float16), strict=True)
    )
    real = torch.ones(rows, length, dtype=torch.bool, device=check.device)
    return Problem(student, teacher, real, sizes[0] ** -0.5, sizes[1] ** -0.5, "valid")  # type: ignore[arg-type]


def attention(
    check: Check,
    *,
    sizes: tuple[int, int] = (26, 64),
    rows: int = 256,
    length: int = 128,
    blocks: Sequence[int] = (32, 64, 128),
    warps: Sequence[int] = (4, 8),
    registers: Sequence[int | None] = (None, 168),
) -> Sweep:
    """The gradients of the attention loss of a layer, of heads of some sizes."""
    import torch  # noqa: PLC0415

    from tinybert_ds.losses import triton_attention  # noqa: PLC0415
    from tinybert_ds.losses.precomputed import Needs  # noqa: PLC0415

    problem = heads_of(check, sizes, rows, length)
    needs, coefficient = Needs(value=False, gradient=True), torch.ones((), device=check.device)

    def run() -> object:
        return triton_attention.launch(problem, coefficient, needs, torch.bfloat16)

    choices = {"BLOCK": blocks, "num_warps": warps, "num_stages": (1, 3), "maxnreg": registers}
    return Sweep(triton_attention, run, choices)


def relations(check: Check) -> Sweep:
    """The gradients of the KL of relations of one kind, 12 heads of 26 and 64."""
    import torch  # noqa: PLC0415

    from tinybert_ds.losses import triton_relations  # noqa: PLC0415
    from tinybert_ds.losses.precomputed import Needs  # noqa: PLC0415

    problem = heads_of(check, (26, 64), 256, 128)
    needs, coefficient = Needs(value=False, gradient=True), torch.ones((), device=check.device)
    choices = {"BLOCK": (32, 64, 128), "KEYS": (32, 64), "num_warps": (4, 8), "num_stages": (1, 3)}
    return Sweep(triton_relations, lambda: triton_relations.launch(problem, coefficient, needs), choices)


def hidden(check: Check) -> Sweep:
    """The residuals of the hidden loss of a state."""
    import torch  # noqa: PLC0415

    from tinybert_ds.losses import triton_hidden  # noqa: PLC0415

    tokens = 8 if check.dry else 256 * 128
    shapes = (tokens, 312), (tokens, 768), (768, 312), (768,)
    given = [torch.randn(shape, device=check.device).bfloat16() for shape in shapes]
    needs = {"need_value": False, "need_residuals": True, "need_bias": True}
    choices = {"BLOCK": (64, 128), "COLUMNS": (64, 128, 256), "INNER": (32, 64), "num_warps": (4, 8)}
    return Sweep(triton_hidden, lambda: triton_hidden.launch(*given, None, **needs), choices)


def layer_norm(check: Check) -> Sweep:
    """A layer norm of the teacher with the addition before it."""
    return _layer_norm(check, 768, gradients=False)


def layer_norm_gradients(check: Check) -> Sweep:
    """The gradients of a layer norm of the student."""
    return _layer_norm(check, 312, gradients=True)


def _layer_norm(check: Check, width: int, *, gradients: bool) -> Sweep:
    import torch  # noqa: PLC0415

    from tinybert_ds.models import triton_layer_norm  # noqa: PLC0415

    tokens = 8 if check.dry else 256 * 128
    shapes = (tokens, width), (tokens, width), (width,), (width,)
    given = [torch.randn(shape, device=check.device).bfloat16() for shape in shapes]
    _, summed, statistics = triton_layer_norm.launch(*given, 1e-6, keeps=True)
    assert summed is not None
    assert statistics is not None

    def run() -> object:
        if gradients:
            return triton_layer_norm.launch_gradients(given[0], summed, statistics, given[2])
        return triton_layer_norm.launch(*given, 1e-6, keeps=False)

    return Sweep(triton_layer_norm, run, {"ROWS": (1, 2, 4, 8), "num_warps": (1, 2, 4, 8)})


def heads(check: Check) -> Sweep:
    """Heads of a layer's queries, filled up."""
    import torch  # noqa: PLC0415

    from tinybert_ds.models import triton_heads  # noqa: PLC0415

    given = torch.randn(1 if check.dry else 256, 128, 12, 26, device=check.device).bfloat16()
    choices = {"ROWS": (16, 32, 64, 128, 256), "num_warps": (2, 4, 8)}
    return Sweep(triton_heads, lambda: triton_heads.launch(given, 32), choices)


SWEEPS: dict[str, Callable[[Check], Sweep]] = {
    "attention": attention,
    "attention_16": partial(attention, sizes=(16, 32), warps=(4,)),
    "attention_64": partial(attention, sizes=(64, 64), blocks=(16, 32, 64), warps=(4, 8, 16), registers=(None,)),
    "attention_128": partial(attention, sizes=(26, 128), blocks=(16, 32, 64), warps=(4, 8, 16), registers=(None,)),
    "attention_long": partial(attention, rows=1, length=8192, warps=(4,), registers=(None, 192)),
    "relations": relations,
    "hidden": hidden,
    "layer_norm": layer_norm,
    "layer_norm_gradients": layer_norm_gradients,
    "heads": heads,
}


def milliseconds(check: Check, sweep: Sweep, changes: Mapping[str, Any]) -> float | str:
    """Return what a launch takes with other options, or why it cannot be done."""
    own = sweep.module.compile_options

    def options(*sizes: Any, **how: Any) -> dict[str, Any]:
        return {name: value for name, value in {**own(*sizes, **how), **changes}.items() if value is not None}

    with mock.patch.object(sweep.module, "compile_options", options):
        try:
            return check.milliseconds(sweep.run)
        except Exception as error:  # too many registers or too much memory: Triton's and CUDA's are of many kinds
            return (str(error).splitlines() or [type(error).__name__])[0][:100]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Time other launches of the Triton kernels.", allow_abbrev=False)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(SWEEPS)}; default: all")
    parser.add_argument("--dry", action="store_true", help="one other launch of each, small, interpreted on the CPU")
    values = parser.parse_args(arguments)
    if unknown := sorted(set(values.kernels) - set(SWEEPS)):
        parser.error(f"unknown kernel {', '.join(unknown)}; there are {', '.join(SWEEPS)}")
    if values.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    check = Check(dry=values.dry)
    for name in values.kernels or SWEEPS:
        sweep = SWEEPS[name](check)
        combinations = [
            dict(zip(sweep.choices, one, strict=True)) for one in itertools.product(*sweep.choices.values())
        ]
        tried = [(milliseconds(check, sweep, one), str(one)) for one in combinations[-1 if values.dry else 0 :]]
        tried.append((milliseconds(check, sweep, {}), "chosen"))
        for time_ms, what in sorted(tried, key=lambda one: (isinstance(one[0], str), one[0])):
            print(f"{name}: {time_ms if isinstance(time_ms, str) else f'{time_ms:.4f} ms'}, {what}", flush=True)


if __name__ == "__main__":
    main()
