"""Layer normalisation in one launch on a GPU, with the addition before it: what it takes, how it is launched.

T tokens (B·S), H hidden size. The kernels themselves are in `triton_layer_norm_kernel`. They were compiled for NVIDIA
GPUs of compute capability 8.0 and 9.0, interpreted on CPUs and run on an H200.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tinybert_ds.losses.triton_attention import COMPILER, device_refusal
from tinybert_ds.models.triton_layer_norm_kernel import layer_norm_gradients_kernel, layer_norm_kernel

MOST_WIDTH = 4096
"""Of a row that a program has in registers."""
ELEMENTS, MOST_ROWS = 2048, 16
"""Of the rows that a program has at a time."""
MOST_PROGRAMS = 528
"""Of the gradients: four for each multiprocessor of an H100, which are there all at once."""


class Normalised(NamedTuple):
    """What a launch leaves; the last two are None for what has no gradients."""

    output: Tensor  # (T, H)
    summed: Tensor | None  # (T, H), the rows that were normalised
    statistics: Tensor | None  # (2, T) float32, their means and 1/√(var + eps)


class LayerNormGradients(NamedTuple):
    """Gradients by the rows that were normalised, by weight and by bias."""

    states: Tensor  # (T, H)
    weight: Tensor  # (H,)
    bias: Tensor  # (H,)


def refusal(width: int, device: torch.device) -> str | None:
    """Return why the kernels cannot take rows of a width, None where they can."""
    return device_refusal(device) or (f"rows are wider than {MOST_WIDTH}" if width > MOST_WIDTH else None)


def compile_options(width: int) -> dict[str, Any]:
    """Return the kernels' compile-time arguments for rows of a width: 16 elements for a thread, which do not spill."""
    columns = triton.next_power_of_2(width)
    rows = max(1, min(MOST_ROWS, ELEMENTS // columns))
    sizes = {"WIDTH": width, "COLUMNS": columns, "ROWS": rows, "num_warps": max(4, columns * rows // 512)}
    return COMPILER | sizes


def launch(
    states: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, keeps: bool
) -> Normalised:
    """Normalise states (T, H), or their sum with residual (T, H).

    Args:
        weight, bias: (H,).
        keeps: Whether to keep what gradients need.
    """
    options = compile_options(states.shape[1])
    states = states.contiguous()
    tokens, not_touched = len(states), states  # stands for what is not there
    output, summed, statistics = torch.empty_like(states), None, None
    if keeps:
        summed = states if residual is None else torch.empty_like(states)
        statistics = torch.empty(2, tokens, dtype=torch.float32, device=states.device)
    if tokens:
        with torch.cuda.device_of(states):
            layer_norm_kernel[(triton.cdiv(tokens, options["ROWS"]),)](
                *(states, not_touched if residual is None else residual.contiguous()),
                *(weight, bias, output),
                *(not_touched if tensor is None else tensor for tensor in (summed, statistics)),
                *(tokens, eps),
                ADDS=residual is not None,
                KEEPS=keeps,
                **options,
            )
    return Normalised(output, summed, statistics)


def launch_gradients(gradient: Tensor, summed: Tensor, statistics: Tensor, weight: Tensor) -> LayerNormGradients:
    """Return the gradients of what `launch` has normalised.

    Args:
        gradient: (T, H), by the output.
        summed, statistics: Of `launch`.
    """
    options = compile_options(summed.shape[1])
    tokens, width = summed.shape
    by_states = torch.empty_like(summed)
    programs = min(MOST_PROGRAMS, triton.cdiv(tokens, options["ROWS"]))
    sums = torch.empty(programs, 2, width, dtype=torch.float32, device=summed.device)
    if tokens:
        with torch.cuda.device_of(summed):
            layer_norm_gradients_kernel[(programs,)](
                gradient.contiguous(), summed, statistics, weight, by_states, sums, tokens, **options
            )
    total = sums.sum(dim=0).to(weight.dtype)
    return LayerNormGradients(by_states, total[0], total[1])
