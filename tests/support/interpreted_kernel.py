"""The Triton kernels, interpreted on a CPU with the rounding of tensor cores, in a process of its own.

Whether a kernel is interpreted is settled when Triton is imported: `start` sets the environment for a worker and takes
it back. What runs inside the worker is `compute`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import LayerNorm

from tests.support.numerics import AttentionCase
from tests.support.relations import RelationCase
from tinybert_ds.losses import attention, gradients_only, hidden_state_loss
from tinybert_ds.models import cuda_layers, fused_attention

_VARIABLE = "TRITON_INTERPRET"
OLDEST_CAPABILITY = (8, 0)


class Computed(NamedTuple):
    """What a loss call with backend="triton" gave."""

    loss: Tensor
    gradients: tuple[Tensor, ...]  # by the student's query and key, or its vectors; empty where none was asked for
    forms: tuple[str, ...]  # what else was computed beside the attention kernel: "gram", "tiled"


@contextmanager
def start() -> Iterator[ProcessPoolExecutor]:
    """Yield a worker in which Triton interprets; submit `compute` to it."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            pool.submit(_emulate_tensor_cores).result()
        finally:
            os.environ.pop(_VARIABLE)
            if before is not None:
                os.environ[_VARIABLE] = before
        yield pool


def compute(
    case: AttentionCase | RelationCase,
    *,
    upstream: float = 1.0,
    gradients: bool = True,
    value: bool = True,
    capability: tuple[int, int] = OLDEST_CAPABILITY,
    **options: Any,
) -> Computed:
    """Return the loss of a case by its kernel, and its gradients times `upstream`; without `value` these alone.

    Args:
        capability: The compute capability whose launches are taken.
    """
    forms = []
    terms = attention.attention_terms

    def spy(problem, form, coefficient, needs):
        forms.append(form)
        return terms(problem, form, coefficient, needs)

    attention.attention_terms = spy
    try:
        with mock.patch("tinybert_ds.losses.triton_attention.capability_of", return_value=capability):
            if gradients:
                with nullcontext() if value else gradients_only():
                    loss, *found = case.loss_and_gradients(upstream, backend="triton", **options)
            else:
                with torch.no_grad():
                    loss, found = case.loss(backend="triton", **options), []
    finally:
        attention.attention_terms = terms
    return Computed(loss.detach(), tuple(found), tuple(forms))


def compute_hidden(
    tensors: Sequence[Tensor | None],
    mask: Tensor,
    *,
    upstream: float = 1.0,
    value: bool = True,
    capability: tuple[int, int] = OLDEST_CAPABILITY,
    **options: Any,
) -> list[Tensor]:
    """Return the hidden-state loss by its kernel and its gradients, times `upstream`, by what asks for one.

    Args:
        tensors: student and teacher states, weight, bias; without `value` the loss is 0.
        capability: The compute capability whose launches are taken.
    """
    inputs = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    with (
        mock.patch("tinybert_ds.losses.triton_hidden.capability_of", return_value=capability),
        nullcontext() if value else gradients_only(),
    ):
        loss = hidden_state_loss(*tensors, mask, backend="triton", **options)
    gradients = torch.autograd.grad(loss * upstream, inputs) if inputs else ()
    return [loss.detach(), *gradients]


def compute_layer_norm(layer: LayerNorm, *given: Tensor, upstream: Tensor | None = None) -> list[Tensor]:
    """Return what a layer makes of an input and of what is added to it, by its kernels.

    Args:
        layer: Its class is changed.
        upstream: The gradient by the output; the gradients by what is given, weight and bias follow the output then.
    """
    with mock.patch.object(cuda_layers, "on_cuda", return_value=True):
        cuda_layers.use_cuda_layers(layer, torch.device("cpu"))
        assert type(layer) is cuda_layers.FusedLayerNorm
        output = layer(*given)
    inputs = [tensor for tensor in (*given, layer.weight, layer.bias) if tensor.requires_grad]
    gradients = torch.autograd.grad(output, inputs, upstream) if upstream is not None else ()
    return [output.detach(), *gradients]


def compute_resized(heads: Tensor, width: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Return heads (B, S, A, D) as the kernel makes them `width` wide, and their gradient of that of the result."""
    with mock.patch.object(fused_attention, "on_cuda", return_value=True):
        found = fused_attention.resized(heads, width)
    assert found.grad_fn is not None
    assert "Resize" in type(found.grad_fn).__name__
    return found.detach(), torch.autograd.grad(found, heads, upstream)[0]


def _emulate_tensor_cores() -> None:
    """Let the interpreter's products round float32 operands to TF32, as tensor cores do; it takes them as they are.

    Those of half precision are multiplied exactly; the interpreter has bfloat16 numbers as their bits. To bfloat16 it
    cuts off, where GPUs round to nearest.
    """
    from triton import language  # noqa: PLC0415 - in the worker only
    from triton._C.libtriton import ir  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        assert a.dtype.scalar == b.dtype.scalar
        if a.dtype.scalar == language.float32:
            assert input_precision == ir.INPUT_PRECISION.TF32
            left, right = to_tf32(a.data), to_tf32(b.data)
        elif a.dtype.scalar == language.bfloat16:
            left, right = from_bfloat16(a.data), from_bfloat16(b.data)
        else:
            assert a.dtype.scalar == language.float16
            left, right = a.data.astype(np.float32), b.data.astype(np.float32)
        return interpreter.TensorHandle(left @ right + d.data, d.dtype.scalar)

    convert = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) != (language.float32, language.bfloat16):
            return convert(self, src, dst_type)
        return interpreter.TensorHandle(nearest_bfloat16(src.data), language.bfloat16)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.cast_impl = cast_impl


def to_tf32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to nearest in 10 bits of mantissa, ties away from zero."""
    bits = np.ascontiguousarray(values).view(np.int32)
    return ((bits + 0x1000) & ~np.int32(0x1FFF)).view(np.float32)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers whose bits are given."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def nearest_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even."""
    return torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.int16).numpy().view(np.uint16)
