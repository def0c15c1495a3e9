"""Meta tensors in the place of a GPU: what is asked of the device cannot be answered, and raises.

The CUDA branches run on tensors without data, forwards, backwards and what the loop does with their numbers. Whatever
reads a number (`item`, `bool`, `tolist`, `cpu`) fails on such tensors by itself; what copies a number from the host,
for which a GPU is waited for as well, is seen by a mode. Kernels in Triton and PyTorch's fused attention are stood in
for by functions of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tinybert_ds import hardware
from tinybert_ds.losses import triton_attention, triton_hidden, triton_relations
from tinybert_ds.models import triton_heads, triton_layer_norm

DEVICE = torch.device("meta")
_real_autocast = torch.amp.autocast
_MAKERS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class HostCopyError(AssertionError):
    """A number went from the host to the device, which waits for it."""


class NoHostCopies(TorchFunctionMode):
    """Raises where numbers of the host are made tensors of the device, or index them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `func` unless it copies from the host."""
        kwargs = kwargs or {}
        if func in _MAKERS:
            result = func(*args, **kwargs)
            _require(result.device != DEVICE or args[0] is result, func)
            return result
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == DEVICE:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            on_host = [part for part in index if isinstance(part, list) or _is_on_host(part)]
            _require(not on_host, func)
        if func is Tensor.to and _is_on_host(args[0]):
            result = func(*args, **kwargs)
            _require(result.device != DEVICE or kwargs.get("non_blocking", False), func)
            return result
        return func(*args, **kwargs)


@contextmanager
def stand_in_gpu() -> Iterator[torch.device]:
    """Take the meta device for a GPU of compute capability 9.0 inside the context; yield it."""
    with (
        mock.patch.object(hardware, "CUDA", DEVICE.type),
        mock.patch.object(torch.amp, "autocast", _autocast),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(triton_attention, "launch", attention_launch),
        mock.patch.object(triton_relations, "launch", relation_launch),
        mock.patch.object(triton_hidden, "launch", hidden_launch),
        mock.patch.object(triton_heads, "launch", resize_heads),
        mock.patch.object(triton_layer_norm, "launch", layer_norm_launch),
        mock.patch.object(triton_layer_norm, "launch_gradients", layer_norm_gradients),
        NoHostCopies(),
    ):
        yield DEVICE


def attention_launch(
    problem: Any, coefficient: Tensor, needs: Any, gradient_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Stand in for `triton_attention.launch`."""
    query, key = problem.student
    statistics = query.new_zeros(4, query.shape[0] * query.shape[1], dtype=torch.float64)
    if not needs.gradient:
        return statistics, None
    return statistics, (torch.empty_like(query, dtype=gradient_dtype), torch.empty_like(key, dtype=gradient_dtype))


def relation_launch(problem: Any, coefficient: Tensor, needs: Any) -> tuple[Tensor | None, Tensor | None]:
    """Stand in for `triton_relations.launch`."""
    student = problem.student[0]
    value = student.new_zeros((), dtype=torch.float64) if needs.value else None
    return value, torch.empty_like(student, dtype=torch.float32) if needs.gradient else None


def hidden_launch(
    student: Tensor, teacher: Tensor, *_: Any, need_value: bool, need_residuals: bool, need_bias: bool
) -> triton_hidden.Residuals:
    """Stand in for `triton_hidden.launch`."""
    tokens, width = teacher.shape
    blocks = -(-tokens // triton_hidden.compile_options((9, 0))["BLOCK"])
    return triton_hidden.Residuals(
        student.new_empty(tokens, width) if need_residuals else None,
        student.new_empty(blocks, width, dtype=torch.float32) if need_bias else None,
        student.new_empty(blocks, dtype=torch.float64) if need_value else None,
    )


def resize_heads(heads: Tensor, width: int) -> Tensor:
    """Stand in for `triton_heads.launch`."""
    return heads.contiguous().new_empty(*heads.shape[:-1], width)


def layer_norm_launch(states: Tensor, residual: Tensor | None, *_: Any, keeps: bool) -> triton_layer_norm.Normalised:
    """Stand in for `triton_layer_norm.launch`."""
    output = torch.empty_like(states)
    if not keeps:
        return triton_layer_norm.Normalised(output, None, None)
    summed = states if residual is None else torch.empty_like(states)
    return triton_layer_norm.Normalised(output, summed, states.new_empty(2, len(states), dtype=torch.float32))


def layer_norm_gradients(
    gradient: Tensor, summed: Tensor, statistics: Tensor, weight: Tensor
) -> triton_layer_norm.LayerNormGradients:
    """Stand in for `triton_layer_norm.launch_gradients`."""
    sums = summed.new_empty(triton_layer_norm.MOST_PROGRAMS, 2, len(weight), dtype=torch.float32)
    total = sums.sum(dim=0).to(weight.dtype)
    return triton_layer_norm.LayerNormGradients(torch.empty_like(summed), total[0], total[1])


def _autocast(device_type: str, **options: Any) -> Any:
    """Return autocast, which knows no meta device."""
    return _real_autocast("cpu" if device_type == DEVICE.type else device_type, **options)


def _is_on_host(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.dim() > 0


def _require(allowed: bool, func: Callable[..., Any]) -> None:
    if not allowed:
        raise HostCopyError(f"{getattr(func, '__name__', func)} copies from the host, for which the device waits")
