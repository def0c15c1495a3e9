"""What changes to an ONNX graph (`onnx_ir`, an extra) are made of: constants, new nodes, operators of single tokens.

B batch rows, S sequence length, H any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ELEMENTWISE = frozenset(
    ("Add", "Sum", "Sub", "Mul", "Div", "Neg", "Sqrt", "Pow", "Erf", "Gelu", "Tanh", "Relu", "Sigmoid", "Cast", "Clip")
)
"""Operators that make each number of their result of those in its place."""
BY_VECTOR = frozenset(("LayerNormalization", "RMSNormalization", "Softmax"))
"""Operators that make each vector along the last axis of the one in its place."""


def is_constant(value: Any) -> bool:
    """Whether a value is known before the graph runs; an input that is left out is."""
    return value is None or value.const_value is not None


def is_integers(value: Any, *numbers: int) -> bool:
    """Whether a value is a constant of these integers, in any shape."""
    if value is None or value.const_value is None:
        return False
    return value.const_value.numpy().reshape(-1).tolist() == list(numbers)


def rank(value: Any) -> int | None:
    """Return the number of a value's axes, None where nothing says it."""
    return None if value is None or value.shape is None else len(value.shape)


def last_axis_alone(node: Any) -> bool:
    """Whether an operator `BY_VECTOR` is one of the last axis and no other."""
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() in (-1, len(node.outputs[0].shape) - 1)


def integers(graph: Any, *numbers: int) -> Any:
    """Return a constant of integers (N,)."""
    return constant(graph, np.array(numbers, np.int64))


def constant(graph: Any, array: NDArray[Any]) -> Any:
    """Return a constant, of each only one for a graph."""
    import onnx_ir  # noqa: PLC0415 - an extra

    name = "_".join(map(str, (array.dtype, *array.shape, "of", *array.reshape(-1))))
    if name not in graph.initializers:
        graph.register_initializer(onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name)))
    return graph.initializers[name]


def insert(
    place: Any, operator: str, inputs: Sequence[Any], *, shape: Any, dtype: Any = None, **attributes: Any
) -> Any:
    """Insert a node into a graph and return its output.

    Args:
        place: The node in front of which it comes, or the graph at the end of which.
        shape: Of the output, of integers, symbols and None.
        dtype: Of the output; by default that of the first input.
    """
    import onnx_ir  # noqa: PLC0415 - an extra

    node = onnx_ir.node(operator, list(inputs), attributes=attributes)
    (output,) = node.outputs
    output.shape, output.dtype = onnx_ir.Shape(shape), dtype or inputs[0].dtype
    if isinstance(place, onnx_ir.Graph):
        place.append(node)
    else:
        place.graph.insert_before(place, node)
    return output
