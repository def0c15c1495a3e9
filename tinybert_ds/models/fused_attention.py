"""SDPA that stays fused on a GPU, that is fast in half precision on a CPU, and masks that ask the device nothing.

PyTorch's fused kernels for CUDA refuse a mask beside a head size that is no multiple of 8 (the shipped 4L_312 has heads
of 26), and the one that is left keeps every score: 2.6 GB for 256 rows of 128 tokens. Its kernel for CPUs has a
backward pass that sets up a product of matrices for every head of every row in half precision, which short rows
make most of the time: four times as long as in float32 for rows of 128 tokens.
B batch rows, S sequence length, A heads, D head size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tinybert_ds.hardware import on_cuda
from tinybert_ds.losses.backends import WITHOUT_TRITON, announce, triton_is_installed

FUSED_MULTIPLE = 8
"""What divides the head sizes that all fused CUDA kernels of SDPA take, in half precision and in float32."""

NARROW_HEAD, SHORT_ROW = 32, 128
"""Head size and length up to either of which a CPU has the gradients of attention in half precision sooner by way of
float32 (`python tests/benchmarks/attention_on_cpu.py`)."""


def fused_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return transformers' SDPA; on CUDA of heads filled up with zeros to a size that the fused kernels take, on a CPU
    in float32 where its gradients are had sooner so.

    Args:
        query, key, value: (B, A, S, D).
        attention_mask: Broadcastable to (B, A, S, S), or None.

    Returns:
        The attention output (B, S, A, D), and None for the probabilities.
    """
    if on_cuda(query.device) and query.shape[-1] % FUSED_MULTIPLE:
        return filled_sdpa(module, query, key, value, attention_mask, **kwargs)
    if sooner_in_float32(query):
        return wide_sdpa(module, query, key, value, attention_mask, **kwargs)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


def filled_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return `fused_sdpa` by way of wider heads: zeros change no score, and the output's are cut off again."""
    if kwargs.get("scaling") is None:
        kwargs["scaling"] = query.shape[-1] ** -0.5  # of the heads as they are
    # In the order (B, S, A, D), in which a model has computed them, and in which it reads output and gradients.
    given = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    filled = [resized(heads, heads.shape[-1] + -heads.shape[-1] % FUSED_MULTIPLE).transpose(1, 2) for heads in given]
    output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *filled, attention_mask, **kwargs)
    return resized(output, value.shape[-1]), None


def resized(heads: Tensor, width: int) -> Tensor:
    """Return heads (B, S, A, D) as (B, S, A, width), with zeros behind or cut; their gradients are cut or filled up."""
    if not _resizes_in_one_launch(heads):
        return F.pad(heads, (0, width - heads.shape[-1]))
    output: Tensor = _Resize.apply(heads, width)
    return output


def _resizes_in_one_launch(heads: Tensor) -> bool:
    if not on_cuda(heads.device) or torch.compiler.is_compiling():
        return False
    if not triton_is_installed():
        announce(f"attention: heads are filled up by PyTorch: {WITHOUT_TRITON}")
        return False
    from tinybert_ds.models import triton_heads  # noqa: PLC0415 - optional, and a second to import

    if reason := triton_heads.refusal(heads.device):
        announce(f"attention: heads are filled up by PyTorch, no Triton kernel: {reason}")
        return False
    announce(f"attention: heads are filled up to a multiple of {FUSED_MULTIPLE} in one launch each (triton)")
    return True


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, width: int) -> Tensor:
        from tinybert_ds.models import triton_heads  # noqa: PLC0415 - optional, and a second to import

        ctx.size = heads.shape[-1]
        return triton_heads.launch(heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        from tinybert_ds.models import triton_heads  # noqa: PLC0415 - optional, and a second to import

        return triton_heads.launch(gradient, ctx.size), None


def sooner_in_float32(query: Tensor) -> bool:
    """Whether attention of queries (B, A, S, D) and its gradients are computed sooner in float32 than as they are."""
    asked = query.requires_grad and torch.is_grad_enabled() and query.dtype.itemsize == 2
    length, head = query.shape[-2:]
    return asked and query.device.type == "cpu" and (head <= NARROW_HEAD or length <= SHORT_ROW)


def wide_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return `fused_sdpa` by way of float32, autocast or not, rounded to the precision of the queries.

    For the backward pass the inputs are kept as they came, and widened again there.
    """
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    narrow = (query, key, value)
    wide = [tensor.float() for tensor in narrow]
    with kept_narrow(wide, narrow), torch.autocast(query.device.type, enabled=False):
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *wide, attention_mask, **kwargs)
    return output.to(query.dtype), None


def kept_narrow(wide: Sequence[Tensor], narrow: Sequence[Tensor]) -> AbstractContextManager[object]:
    """Let autograd keep the second instead of the first of two lists, which are the same numbers in float32.

    Nothing is changed inside gradient checkpointing, which keeps no such tensors and counts what it sees, nor in what
    is compiled, which decides by itself.
    """
    if torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return nullcontext()
    origins = {_place_of(one): other.detach() for one, other in zip(wide, narrow, strict=True)}

    def pack(saved: Tensor) -> tuple[Tensor, bool]:
        origin = origins.get(_place_of(saved))
        return (saved, False) if origin is None else (origin, True)

    def unpack(kept: tuple[Tensor, bool]) -> Tensor:
        tensor, is_narrow = kept
        return tensor.float() if is_narrow else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _place_of(tensor: Tensor) -> Hashable:
    """What only a tensor with the same elements at the same places has, while both are there."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def padding_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """Return the mask of padding alone as one row for all queries, any other as transformers makes it.

    Whether there is any padding is known where batches are made (`Batch.padded`), and not asked of the device here.
    Half of the memory of rows of 512 would else be masks.

    Args:
        attention_mask: (B, S) bool, or None where nothing is padded.

    Returns:
        (B, 1, 1, S) bool; on CUDA what is added to the scores, so that not every layer has to make it.
        None where nothing is masked.
    """
    skip = allow_is_bidirectional_skip and attention_mask is None
    plain = kwargs.get("mask_function") is bidirectional_mask_function and kwargs.get("local_size") is None
    if attention_mask is None or not plain or attention_mask.shape[-1] != kv_length or not allow_is_bidirectional_skip:
        return sdpa_mask(
            q_length=q_length,
            kv_length=kv_length,
            attention_mask=attention_mask,
            allow_is_bidirectional_skip=skip,
            **kwargs,
        )
    visible = attention_mask[:, None, None, :].bool()
    if not on_cuda(visible.device):
        return visible
    dtype = kwargs.get("dtype", torch.float32)
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, float("-inf"))
