"""A graph whose last layer computes the first token alone, where nothing else of its output is read.

Classifiers and scores are read from the first token's state: of the last layer the others' keys and values are needed,
and nothing more. The results are the same; a 3-layer student saves a quarter of its work, a 12-layer one a fifteenth.

B batch rows, S sequence length, A heads, D head size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinybert_ds.export.graph_nodes import (
    BY_VECTOR,
    ELEMENTWISE,
    insert,
    integers,
    is_constant,
    is_integers,
    last_axis_alone,
    rank,
)


def compute_first_token_alone(graph: Any) -> None:
    """Let the nodes of an `onnx_ir.Graph` compute no tokens but the first where that is all that is read.

    From the results to the inputs: a value of which all readers take the first token is made of the first tokens of
    what it is made of, as far as its operator allows that; from the rest the first token is taken.
    """
    narrow, read = _values_read_in_part(graph)
    taken: dict[tuple[Any, int], Any] = {}
    for node in list(graph):
        if _takes_first_alone(node):
            if node.inputs[0] in narrow:
                _squeeze(node)
            continue
        for position, value in enumerate(node.inputs):
            axis = read.get((node, position))
            if axis is None or value in narrow:
                continue
            if (value, axis) not in taken:
                taken[value, axis] = _take(node, value, axis)
            node.replace_input_with(position, taken[value, axis])
        if node.outputs[0] in narrow:
            _narrow(node, narrow[node.outputs[0]])


def _values_read_in_part(graph: Any) -> tuple[dict[Any, int], dict[tuple[Any, int], int]]:
    """Return values that can be made of their first tokens alone, and by reading node and position the values of which
    it needs no more; each with the axis along which tokens lie."""
    narrow: dict[Any, int] = {}
    read: dict[tuple[Any, int], int] = {}
    for node in reversed(list(graph)):
        if _takes_first_alone(node):
            read[node, 0] = 1
            continue
        axis = _axis_read(node.outputs[0], read)
        needs = [] if axis is None else _needs(node, axis)
        if axis is not None and needs:
            narrow[node.outputs[0]] = axis
            read.update({(node, position): of for position, of in needs})
    return narrow, read


def _takes_first_alone(node: Any) -> bool:
    """Whether a node takes the first token's states (B, H) of all (B, S, H)."""
    if node.op_type != "Gather" or is_constant(node.inputs[0]) or node.outputs[0].is_graph_output():
        return False
    states, index = node.inputs
    axis = node.attributes.get("axis")
    scalar = index.shape is not None and len(index.shape) == 0
    return bool(rank(states) == 3 and axis is not None and axis.as_int() == 1 and scalar and is_integers(index, 0))


def _axis_read(value: Any, read: dict[tuple[Any, int], int]) -> int | None:
    """The axis along which all readers of a value need the first alone, None where one needs more."""
    axes = {read.get((use.node, use.idx)) for use in value.uses()}
    return axes.pop() if len(axes) == 1 and not value.is_graph_output() and rank(value) is not None else None


def _needs(node: Any, axis: int) -> list[tuple[int, int]]:
    """What a node needs for the first along an axis of its output: positions of inputs, and the axis along which the
    first of each is enough. Nothing where its operator is none of those that tell."""
    known = all(rank(value) is not None for value in node.inputs if not is_constant(value))
    return list(_by_operator(node, axis)) if known else []


def _by_operator(node: Any, axis: int) -> Iterator[tuple[int, int]]:
    last = len(node.outputs[0].shape) - 1
    if node.op_type in ELEMENTWISE:
        for position, value in enumerate(node.inputs):
            own = axis - last - 1 + (rank(value) or 0)
            if value is not None and own >= 0 and value.shape[own] != 1:
                yield position, own
    elif node.op_type in BY_VECTOR and axis != last and last_axis_alone(node):
        yield 0, axis
    elif node.op_type == "MatMul" and axis == last - 1 and (rank(node.inputs[0]) or 0) >= 2:
        yield 0, len(node.inputs[0].shape) - 2
    elif node.op_type == "Transpose":
        yield 0, node.attributes["perm"].as_ints()[axis]
    elif node.op_type == "Reshape":
        before, after = node.inputs[0].shape, node.outputs[0].shape
        same = before[: axis + 1] == after[: axis + 1] and not before.has_unknown_dim()
        if same and all(isinstance(size, int) for size in after[axis + 1 :]):
            yield 0, axis
    elif node.op_type == "Attention" and axis == 1 and _is_plain_attention(node):
        yield 0, 1
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None and mask.shape[-2] != 1:
            yield 3, len(mask.shape) - 2


def _is_plain_attention(node: Any) -> bool:
    """Whether the queries (B, S, A * D) of ONNX's attention may be any: nothing depends on their place, nothing else
    is returned, and there are no states of earlier tokens."""
    causal = node.attributes.get("is_causal")
    more = [value for value in node.inputs[4:] if value is not None] + [v for v in node.outputs[1:] if v.uses()]
    return bool(rank(node.inputs[0]) == 3 and not more and (causal is None or not causal.as_int()))


def _take(before: Any, value: Any, axis: int) -> Any:
    """The first along an axis of a value."""
    inputs = [value, integers(before.graph, 0)]
    return insert(before, "Gather", inputs, shape=_first_along(axis, value.shape), axis=axis)


def _narrow(node: Any, axis: int) -> None:
    """Let a node say that its output has one of what lies along an axis."""
    output = node.outputs[0]
    output.shape = type(output.shape)(_first_along(axis, output.shape))
    if node.op_type == "Reshape":
        node.attributes.pop("allowzero", None)  # a zero copies the size of the input
        node.replace_input_with(1, integers(node.graph, *axis * (0,), *output.shape[axis:]))


def _squeeze(node: Any) -> None:
    """Put in the place of a node that takes the first token one that drops the axis of tokens."""
    inputs, shape = [node.inputs[0], integers(node.graph, 1)], node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(insert(node, "Squeeze", inputs, shape=shape))
    node.graph.remove(node, safe=True)


def _first_along(axis: int, shape: Any) -> list[Any]:
    return [1 if number == axis else size for number, size in enumerate(shape)]
