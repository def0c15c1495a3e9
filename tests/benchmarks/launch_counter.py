"""What a GPU would be asked to do, counted on tensors without data: launches, bytes, multiply-adds.

Operators are seen as PyTorch dispatches them. Views and allocations launch nothing; what launches more than one kernel
on CUDA is in `SEVERAL`. Attention, dropout and the Triton kernels, which CUDA has in one piece, are stood in for by
functions of the same shapes that count themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support import standin_gpu
from tinybert_ds.engine.cuda_recorder import Recorded, Work
from tinybert_ds.losses import triton_attention, triton_hidden
from tinybert_ds.models import triton_heads, triton_layer_norm

BYTES_PER_SECOND = 2.7e12  # of an H100's 3.35 TB/s, what copies reach
HALF_FLOPS, TF32_FLOPS, FULL_FLOPS = 600e12, 250e12, 50e12  # of products that fill the chip, 2 for each multiply-add
TRITON_FLOPS = 300e12
"""Of products in Triton with a short inner size, half precision: half of what a library reaches with long ones."""
LEAST_SECONDS = 2e-6
"""What a kernel takes at least, its start included."""

LAUNCHES_OF_REPLAY = 3

FREE = frozenset(
    """empty empty_like empty_strided new_empty new_empty_strided detach alias _unsafe_view lift_fresh view
    _local_scalar_dense is_same_size _record_function_enter_new _record_function_exit""".split()
)
MADE_ALONE = frozenset("""embedding new_zeros new_ones new_full zeros_like ones_like full_like""".split())
"""What moves only what it makes: of a table a row for each position, or nothing of what it is like."""
SEVERAL = {
    "constant_pad_nd": 2,  # filled, then copied to
    "masked_fill": 2,  # a copy, then the filling
    "native_layer_norm_backward": 3,  # the input's gradient, and two parts of that of the weights
    "embedding_dense_backward": 5,  # sorts the positions
    "_foreach_norm": 2,
    "_log_softmax_backward_data": 1,
}
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Where an operator's two factors are among its arguments."""
TENSORS_PER_LAUNCH = {"_fused_adamw_": 24, "_foreach_mul_": 96}


@dataclass
class Tally:
    """A sum over launches."""

    launches: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0  # if each launch takes what its bytes or its products take, and LEAST_SECONDS at least

    def add(self, launches: int, num_bytes: float, flops: float = 0.0, rate: float = HALF_FLOPS) -> None:
        """Add some launches that move so many bytes together and multiply so much."""
        self.launches += launches
        self.bytes += num_bytes
        self.flops += flops
        self.seconds += max(launches * LEAST_SECONDS, num_bytes / BYTES_PER_SECOND, flops / rate)


class LaunchCounter(TorchDispatchMode):
    """Counts what is dispatched inside the context, into the tally of the part that was named last."""

    def __init__(self) -> None:
        super().__init__()
        self.tallies: dict[str, Tally] = {}
        self.part("all")

    def part(self, name: str) -> None:
        """Count into this part from now on."""
        self.tally = self.tallies.setdefault(name, Tally())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        launches = launches_of(func, args)
        if launches:
            given, made = _tensors((args, kwargs)), _tensors(result)
            moved = {id(tensor): tensor.nbytes for tensor in (*given, *made)}
            if _name(func) in MADE_ALONE:
                moved = {id(tensor): tensor.nbytes for tensor in made}
            flops, rate = product_of(func, args)
            self.tally.add(launches, sum(moved.values()), flops, rate)
        return result


def launches_of(func: Any, args: Sequence[Any]) -> int:
    """Return how many kernels an operator starts on CUDA."""
    name = _name(func)
    if name in FREE or _is_view(func):
        return 0
    if name in TENSORS_PER_LAUNCH:
        return math.ceil(len(args[0]) / TENSORS_PER_LAUNCH[name])
    if name == "masked_fill" and _tensors(args)[0].dim() == 0:
        return 1
    return SEVERAL.get(name, 1)


def product_of(func: Any, args: Sequence[Any]) -> tuple[float, float]:
    """Return the multiply-adds of a matrix product, times 2, and how many of them a second; 0 for other operators."""
    name = _name(func)
    if name not in PRODUCTS:
        return 0.0, HALF_FLOPS
    left, right = (args[place] for place in PRODUCTS[name])
    rate = TF32_FLOPS if torch.backends.cuda.matmul.fp32_precision == "tf32" else FULL_FLOPS
    rate = HALF_FLOPS if left.dtype in (torch.float16, torch.bfloat16) else rate
    return 2.0 * left.numel() * right.shape[-1], rate


class CountingRecorder:
    """Counts a recording as what replays it: the graph, and the generator's seed and offset put in their places.

    Its work is counted for the bytes, the products and the time that a replay takes.
    """

    def __init__(self, counter: LaunchCounter) -> None:
        self._counter = counter

    def record(self, work: Work) -> Recorded:
        """Do the work once, counted apart."""
        outer, inner = self._counter.tally, Tally()
        self._counter.tally = inner
        outputs = tuple(work())
        self._counter.tally = outer

        def replay() -> None:
            tally = self._counter.tally
            tally.launches += LAUNCHES_OF_REPLAY
            tally.bytes += inner.bytes
            tally.flops += inner.flops
            tally.seconds += inner.seconds

        return Recorded(outputs, replay)

    def has_room(self) -> bool:
        """There always is."""
        return True


@contextmanager
def counting(counter: LaunchCounter) -> Iterator[torch.device]:
    """Let the stand-in of a GPU count into `counter` inside the context; yield its device."""
    one_launch = partial(_one_launch, counter)
    with (
        standin_gpu.stand_in_gpu() as device,
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention_of(counter)),
        mock.patch.object(torch.nn.functional, "dropout", _dropout),
        mock.patch.object(triton_attention, "launch", _triton_of(counter)),
        mock.patch.object(triton_hidden, "launch", _triton_hidden_of(counter)),
        mock.patch.object(triton_heads, "launch", one_launch(standin_gpu.resize_heads)),
        mock.patch.object(triton_layer_norm, "launch", one_launch(standin_gpu.layer_norm_launch)),
        mock.patch.object(triton_layer_norm, "launch_gradients", one_launch(standin_gpu.layer_norm_gradients)),
        counter,
    ):
        yield device


def _attention_of(counter: LaunchCounter) -> Callable[..., Tensor]:
    """Return a stand-in for SDPA: one fused kernel forward, three backward."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            ctx.save_for_backward(query, key, value)
            batch, heads, length, size = query.shape
            output = query.new_empty(batch, length, heads, size).transpose(1, 2)
            moved = query.nbytes + key.nbytes + value.nbytes + output.nbytes
            counter.tally.add(1, moved, 4.0 * query.numel() * length)
            return output

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
            inputs = ctx.saved_tensors
            moved = 2 * sum(tensor.nbytes for tensor in (*inputs, gradient))
            counter.tally.add(3, moved, 10.0 * inputs[0].numel() * inputs[0].shape[2])
            return tuple(torch.empty_like(tensor) for tensor in inputs)

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return Attention.apply(query, key, value)

    return attention


def _triton_of(counter: LaunchCounter) -> Callable[..., Any]:
    """Return a stand-in for the launch of the attention loss that counts it."""

    def launch(problem: Any, coefficient: Tensor, needs: Any, **how: Any) -> Any:
        inputs = (*problem.student, *problem.teacher)
        statistics, gradients = standin_gpu.attention_launch(problem, coefficient, needs, **how)
        student, total = problem.head_sizes[0], sum(problem.head_sizes)
        tokens = problem.student[0].numel() // student
        flops = 2.0 * tokens * 2 * student * total * (3 if needs.gradient else 1)  # split factors: twice
        counter.tally.add(1, sum(tensor.nbytes for tensor in (*inputs, *(gradients or ()))), flops, TF32_FLOPS)
        return statistics, gradients

    return launch


def _triton_hidden_of(counter: LaunchCounter) -> Callable[..., Any]:
    """Return a stand-in for the launch of the hidden loss that counts it."""

    def launch(student: Tensor, teacher: Tensor, weight: Tensor, *more: Any, **needs: bool) -> Any:
        found = standin_gpu.hidden_launch(student, teacher, weight, *more, **needs)
        moved = sum(tensor.nbytes for tensor in _tensors((student, teacher, weight, more, found)))
        counter.tally.add(1, moved, 2.0 * student.numel() * teacher.shape[1], TRITON_FLOPS)
        return found

    return launch


def _one_launch(counter: LaunchCounter, stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stand-in for a launch that reads what it is given and writes what it returns."""

    def launch(*given: Any, **how: Any) -> Any:
        made = stand_in(*given, **how)
        moved = {id(tensor): tensor.nbytes for tensor in _tensors((given, made))}
        counter.tally.add(1, sum(moved.values()))
        return made

    return launch


def _dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Stand in for dropout by the operator that CUDA has for it."""
    return torch.native_dropout(values, p, True)[0] if training and p else values


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _name(func: Any) -> str:
    return str(func._schema.name).partition("::")[2]


def _is_view(func: Any) -> bool:
    """Whether all that an operator returns are views of what it is given."""
    results = func._schema.returns
    return bool(results) and all(r.alias_info is not None and not r.alias_info.is_write for r in results)
