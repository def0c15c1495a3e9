"""A loss whose gradients are known when its value is: the one autograd node behind the fused forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attach_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return `value` as a function of `inputs` with the given gradients.

    Args:
        value: scalar.
        inputs: the tensors to differentiate by, of any dtype.
        gradients: ∂value/∂input for each, in float32 or float64: half-precision gradients are rounded once only, after
            the upstream gradient (a loss scale, say) has been multiplied in, so that float16 does not underflow.
    """
    return _Precomputed.apply(value, len(inputs), *inputs, *gradients)


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        ctx.input_dtypes = [tensor.dtype for tensor in tensors[:count]]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        gradients = [
            (gradient * upstream).to(dtype) if needed else None
            for gradient, dtype, needed in zip(
                ctx.saved_tensors, ctx.input_dtypes, ctx.needs_input_grad[2:], strict=False
            )
        ]
        return (None, None, *gradients, *([None] * len(gradients)))
