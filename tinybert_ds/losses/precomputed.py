"""A loss whose gradients are known when its value is: the one autograd node behind the fused forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_gradients_suffice: ContextVar[bool] = ContextVar("tinybert_ds_gradients_suffice", default=False)


@contextmanager
def gradients_only() -> Iterator[None]:
    """Leave out, inside the context, the terms of a loss that none of its gradients needs.

    For a step whose losses are differentiated and not read: the value of what is left out is 0. A loss that is not
    differentiated keeps its value.
    """
    token = _gradients_suffice.set(True)
    try:
        yield
    finally:
        _gradients_suffice.reset(token)


def gradients_suffice() -> bool:
    """Whether `gradients_only` holds here and now."""
    return _gradients_suffice.get()


class Needs(NamedTuple):
    """What is to be computed of a loss."""

    value: bool
    gradient: bool


def needs_of(*inputs: Tensor) -> Needs:
    """Return what is asked of a loss of these inputs here and now."""
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return Needs(value=not (gradient and _gradients_suffice.get()), gradient=gradient)


def attach_gradients(
    value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor], factor: Tensor | None = None
) -> Tensor:
    """Return `value` as a function of `inputs` with the given gradients.

    Args:
        inputs: the tensors to differentiate by, of any dtype.
        gradients: ∂value/∂input for each, in float32 or float64: half-precision gradients are rounded once only, after
            the upstream gradient (a loss scale, say) has been multiplied in, so that float16 does not underflow. What
            was rounded to bfloat16 before, which has the range of float32, is multiplied in float32 and rounded again.
        factor: float32 or float64 scalar that all gradients are yet to be multiplied by, in the same pass.
    """
    return _Precomputed.apply(value, factor, len(inputs), *inputs, *gradients)


def scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient · upstream, rounded to a dtype once, in one pass."""
    # A tensor without dimensions would be rounded to the gradient's dtype first.
    return torch.mul(gradient, upstream.reshape(1), out=torch.empty_like(gradient, dtype=dtype))


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, factor: Tensor | None, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(factor, *tensors[count:])
        ctx.input_dtypes = [tensor.dtype for tensor in tensors[:count]]
        ctx.leaves = [tensor.is_leaf for tensor in tensors[:count]]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        factor, *saved = ctx.saved_tensors
        if factor is not None:
            upstream = upstream * factor
        # Most losses are only added up. A leaf would keep the tensor as its own .grad, and add to it in place.
        unscaled = upstream.device.type == "cpu" and upstream.item() == 1
        inputs = zip(saved, ctx.input_dtypes, ctx.leaves, ctx.needs_input_grad[3:], strict=False)
        gradients = [
            None if not needed else gradient.to(dtype, copy=leaf) if unscaled else scaled(gradient, upstream, dtype)
            for gradient, dtype, leaf, needed in inputs
        ]
        return (None, None, None, *gradients, *([None] * len(gradients)))
