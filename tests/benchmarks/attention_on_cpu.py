"""Attention and its gradients on a CPU in bfloat16: by PyTorch's fused kernel, and by the same one in float32.

    python tests/benchmarks/attention_on_cpu.py [--rounds 7]

2,048 tokens in rows of one length, 12 heads, one thread and its processor time, lower quartile. The last column says
what `tinybert_ds.models.fused_attention` takes where gradients are asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import environment_line
from tinybert_ds.models.fused_attention import sooner_in_float32, wide_sdpa

TOKENS, HEADS = 2048, 12


def milliseconds(attention: Callable[..., Any], inputs: list[Tensor], mask: Tensor, rounds: int) -> float:
    """Return the time of a forward and a backward pass."""
    layer, times = nn.Module(), []
    layer.is_causal = False
    for _ in range(rounds + 1):
        begin = time.thread_time()
        output, _ = attention(layer, *inputs, mask)
        torch.autograd.grad(output, inputs, torch.ones_like(output))
        times.append(1000 * (time.thread_time() - begin))
    return float(np.quantile(times[1:], 0.25))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(environment_line())
    print("\n| head size | rows | bfloat16, ms | float32, ms | ratio | taken |\n|---:|---:|---:|---:|---:|---|")
    for head in (16, 26, 32, 64):
        for length in (16, 64, 128, 256, 512, 2048):
            shape = (TOKENS // length, length, HEADS, head)
            inputs = [torch.randn(shape, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3)]
            mask = torch.ones(shape[0], 1, 1, length, dtype=torch.bool)
            functions = ALL_ATTENTION_FUNCTIONS["sdpa"], wide_sdpa
            half, whole = (milliseconds(function, inputs, mask, rounds) for function in functions)
            taken = "float32" if sooner_in_float32(inputs[0]) else "bfloat16"
            rows = f"{TOKENS // length} of {length}"
            print(f"| {head} | {rows} | {half:.1f} | {whole:.1f} | {half / whole:.2f} | {taken} |", flush=True)


if __name__ == "__main__":
    main()
