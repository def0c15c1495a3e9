"""Layers in half precision whose form on CUDA is another than PyTorch's: classes that modules change to, in place.

Layer normalisation is one launch with the addition before it, in the layers of BERT and of all that have its form, and
one for its gradients. The gradient of a bias is a product with ones: PyTorch's `sum` over tokens takes four times as
long there. Names, parameters and hooks stay as they are. B batch rows, S sequence length, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.bert.modeling_bert import BertOutput

from tinybert_ds.hardware import on_cuda
from tinybert_ds.losses.backends import WITHOUT_TRITON, announce, triton_is_installed
from tinybert_ds.losses.workspace import wide_matmul

HALF_DTYPES = (torch.bfloat16, torch.float16)
_MEANING = ("co_code", "co_names", "co_varnames", "co_consts")
"""Of a function's code, what says that two do the same."""


class FusedLayerNorm(nn.LayerNorm):
    """Layer normalisation that takes what is to be added to its input beforehand."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the normalised sum (B, S, H) of input and residual (B, S, H)."""
        given = (input,) if residual is None else (input, residual)
        if not are_taken(self.weight, *given) or (residual is not None and residual.shape != input.shape):
            return super().forward(input if residual is None else input + residual)
        parameters = (self.weight, self.bias)
        asks = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*given, *parameters))
        flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in given]
        rows, added = flat[0], flat[1] if residual is not None else None
        if asks:
            output: Tensor = _Normalise.apply(rows, added, *parameters, self.eps)
        else:
            from tinybert_ds.models import triton_layer_norm  # noqa: PLC0415 - optional, and a second to import

            output = triton_layer_norm.launch(rows, added, *parameters, self.eps, keeps=False).output
        return output.view(input.shape)


class ResidualOutput(nn.Module):
    """The form of `BertOutput`, its addition left to the layer normalisation."""

    dense: nn.Module
    dropout: nn.Module
    LayerNorm: FusedLayerNorm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Return LayerNorm(dropout(dense(hidden_states)) + input_tensor), (B, S, H)."""
        output: Tensor = self.LayerNorm(self.dropout(self.dense(hidden_states)), input_tensor)
        return output


class TrainedLinear(nn.Linear):
    """A linear layer the gradient of whose bias is a product with ones."""

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b."""
        if not torch.is_grad_enabled() or not are_taken(self.weight, input):
            return super().forward(input)
        output: Tensor = _Multiply.apply(input, self.weight, self.bias)
        return output


def are_taken(weight: Tensor, *given: Tensor) -> bool:
    """Whether a layer computes its own form of these tensors here and now.

    Under autocast PyTorch chooses the precision, and what torch.compile reads it fuses by itself.
    """
    if torch.compiler.is_compiling() or weight.dtype not in HALF_DTYPES:
        return False
    alike = all(on_cuda(tensor.device) and tensor.dtype is weight.dtype for tensor in given)
    return alike and not torch.is_autocast_enabled("cuda")


def use_cuda_layers(model: nn.Module, device: torch.device) -> None:
    """Let the layers of a model have their form for CUDA, in place, where it is on a GPU and in half precision.

    Nothing is changed in a model whose parameters are split among ranks: it must not be given to this.
    """
    if not on_cuda(device):
        return
    _fuse_layer_norms(model, device)
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is not None and module.bias.requires_grad:
            module.__class__ = TrainedLinear


def _fuse_layer_norms(model: nn.Module, device: torch.device) -> None:
    fused = 0
    for module in model.modules():
        if type(module) is not nn.LayerNorm or module.bias is None or module.weight.dtype not in HALF_DTYPES:
            continue
        if reason := _refusal(module, device):
            announce(f"layer normalisation by PyTorch, no Triton kernel: {reason}")
            continue
        module.__class__ = FusedLayerNorm
        fused += 1
    if fused:
        announce(
            "layer normalisation in one launch, with the addition before it where a layer has BERT's form (triton)"
        )
    for module in model.modules():
        if _has_form_of_bert(module) and type(module.LayerNorm) is FusedLayerNorm:
            module.__class__ = ResidualOutput


def _refusal(module: nn.LayerNorm, device: torch.device) -> str | None:
    if not triton_is_installed():
        return WITHOUT_TRITON
    from tinybert_ds.models import triton_layer_norm  # noqa: PLC0415 - optional, and a second to import

    if len(module.normalized_shape) > 1:
        return "more than the last dimension is normalised"
    return triton_layer_norm.refusal(module.normalized_shape[0], device)


def _has_form_of_bert(module: nn.Module) -> bool:
    """Whether a module's forward is, word for word, that of `BertOutput`, as in fifty classes of transformers."""
    own, known = (getattr(kind.forward, "__code__", None) for kind in (type(module), BertOutput))
    same = own is not None and all(getattr(own, part) == getattr(known, part) for part in _MEANING)
    return same and "forward" not in vars(module)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        from tinybert_ds.models import triton_layer_norm  # noqa: PLC0415 - optional, and a second to import

        normalised = triton_layer_norm.launch(states, residual, weight, bias, eps, keeps=True)
        ctx.save_for_backward(normalised.summed, normalised.statistics, weight)
        ctx.adds = residual is not None
        return normalised.output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from tinybert_ds.models import triton_layer_norm  # noqa: PLC0415 - optional, and a second to import

        by_states, by_weight, by_bias = triton_layer_norm.launch_gradients(gradient, *ctx.saved_tensors)
        return by_states, by_states if ctx.adds else None, by_weight, by_bias, None


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        return F.linear(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        by_states, by_weight, by_bias = ctx.needs_input_grad
        rows, inputs = gradient.reshape(-1, weight.shape[0]), states.reshape(-1, weight.shape[1])
        # In float32 first: a product that is parted between programs may be added up in half precision.
        ones = rows.new_ones(1, len(rows))
        return (
            (rows @ weight).view(states.shape) if by_states else None,
            rows.t() @ inputs if by_weight else None,
            wide_matmul(ones, rows, torch.float32).view(-1).to(weight.dtype) if by_bias else None,
        )
