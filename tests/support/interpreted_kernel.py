"""The Triton kernels, interpreted on a CPU with the rounding of tensor cores, in a process of its own.

Whether a kernel is interpreted is settled when Triton is imported: `start` sets the environment for a worker and takes
it back. What runs inside the worker is `compute`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.numerics import AttentionCase
from tests.support.relations import RelationCase
from tinybert_ds.losses import attention, gradients_only

_VARIABLE = "TRITON_INTERPRET"


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
    **options: Any,
) -> Computed:
    """Return the loss of a case by its kernel, and its gradients times `upstream`; without `value` these alone."""
    forms = []
    terms = attention.attention_terms

    def spy(problem, form, coefficient, needs):
        forms.append(form)
        return terms(problem, form, coefficient, needs)

    attention.attention_terms = spy
    try:
        if gradients:
            with nullcontext() if value else gradients_only():
                loss, *found = case.loss_and_gradients(upstream, backend="triton", **options)
        else:
            with torch.no_grad():
                loss, found = case.loss(backend="triton", **options), []
    finally:
        attention.attention_terms = terms
    return Computed(loss.detach(), tuple(found), tuple(forms))


def _emulate_tensor_cores() -> None:
    """Let the interpreter's products round their operands to TF32, as tensor cores do; it takes them as they are."""
    from triton._C.libtriton import ir  # noqa: PLC0415 - in the worker only
    from triton.runtime import interpreter  # noqa: PLC0415

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        left, right = a.data, b.data
        assert left.dtype == right.dtype == np.float32
        assert input_precision == ir.INPUT_PRECISION.TF32
        return interpreter.TensorHandle(to_tf32(left) @ to_tf32(right) + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


def to_tf32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to nearest in 10 bits of mantissa, ties away from zero."""
    bits = np.ascontiguousarray(values).view(np.int32)
    return ((bits + 0x1000) & ~np.int32(0x1FFF)).view(np.float32)
