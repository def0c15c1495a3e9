"""A graph that computes no padding: the tokens of all rows in one sequence, and rows with padding in attention alone.

Of a batch of texts of many lengths padding is a third to a half of all tokens. The results are the same; at padding
itself states and logits of the usual models are zero, but for a row's first token, which is computed whatever the mask
says.

B batch rows, S sequence length, T tokens of all rows, H any width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tinybert_ds.export.graph_nodes import (
    BY_VECTOR,
    ELEMENTWISE,
    constant,
    insert,
    integers,
    is_constant,
    is_integers,
    last_axis_alone,
    rank,
)
from tinybert_ds.export.masked_attention import masked_places
from tinybert_ds.export.padding_reach import padding_is_read


def drop_padding(graph: Any) -> None:
    """Let the nodes of an `onnx_ir.Graph` from the first product on compute tokens (T, H) in the place of (B, S, H).

    What the graph returns of tokens, and of rows that have one, is what it was. At padding itself states that are put
    back into rows behind the last attention are zero, and what is made of them there is made of zeros; what attention
    returns there, and no layer computes on, is any number.

    A graph stays as it is where nothing is masked, and where padding may be read by other ways than attention with a
    mask: every operator that what is no longer computed comes to has to be known to leave tokens apart, to take the
    first token or the one at the place of the mask's sum less one, which is the last of a row padded on the right, or
    to stand behind a product with the mask or a choice by it (see `padding_reach`).
    """
    by_token, masked = _nodes_by_token(graph), masked_places(graph)
    before_attention = _nodes_before_attention(graph, masked)
    if not by_token or not masked or padding_is_read(graph, by_token, masked, before_attention):
        return
    import onnx_ir  # noqa: PLC0415 - an extra

    tokens = _Tokens(graph, next(iter(by_token)))
    for node in list(graph):
        for position, value in enumerate(node.inputs):
            if is_constant(value) or (value.producer() in by_token) == (node in by_token):
                continue
            if node in by_token:
                node.replace_input_with(position, tokens.packed(node, value))
            elif _takes_first(node):
                tokens.take_first(node)
            else:
                rows = tokens.in_rows(node, value, zeros=node not in before_attention)
                node.replace_input_with(position, rows)
    for position, value in enumerate(graph.outputs):
        if value.producer() in by_token:
            graph.outputs[position] = tokens.output(value)
    for node in by_token:
        if "axis" in node.attributes:
            node.attributes.add(onnx_ir.AttrInt64("axis", -1))  # the last axis is no longer the third
        for output in node.outputs:
            output.shape = tokens.shape(output)


def _nodes_by_token(graph: Any) -> Collection[Any]:
    """The nodes that make states (B, S, H) of those of the same token, from the first product with weights on."""
    rows = next(value for value in graph.inputs if value.name == "input_ids").shape
    found: dict[Any, None] = {}  # a set in the graph's order
    for node in graph:
        begins = node.op_type == "MatMul" or any(value and value.producer() in found for value in node.inputs)
        if begins and _is_by_token(node, rows):
            found[node] = None
    return found


def _is_by_token(node: Any, rows: Any) -> bool:
    constants = [value for value in node.inputs if is_constant(value)]
    states = [value for value in node.inputs if not is_constant(value)]
    if not states or not all(_is_states(value, rows) for value in (*states, *node.outputs)):
        return False
    if node.op_type == "MatMul":
        return len(constants) == 1 and rank(node.inputs[1]) == 2
    if any((rank(value) or 0) > 1 for value in constants):
        return False
    if node.op_type == "Split":
        return "axis" in node.attributes and last_axis_alone(node)
    return node.op_type in ELEMENTWISE or (node.op_type in BY_VECTOR and last_axis_alone(node))


def _is_states(value: Any, rows: Any) -> bool:
    """Whether a value has the shape (B, S, H), its width known, beside rows (B, S)."""
    return rank(value) == 3 and value.shape[:2] == rows[:2] and isinstance(value.shape[2], int)


def _nodes_before_attention(graph: Any, masked: Collection[tuple[Any, int]]) -> Collection[Any]:
    """The nodes in which padding is masked, and all that something of them is made of."""
    found = {node for node, _ in masked}
    for node in reversed(list(graph)):
        if any(use.node in found for output in node.outputs for use in output.uses()):
            found.add(node)
    return found


def _takes_first(node: Any) -> bool:
    """Whether a node takes of states (B, S, H) those of the first token, as (B, H) or (B, 1, H)."""
    axis = node.attributes.get("axis")
    along_tokens = node.op_type == "Gather" and axis is not None and axis.as_int() == 1
    return along_tokens and is_integers(node.inputs[1], 0) and (rank(node.inputs[1]) or 0) < 2


class _Tokens:
    """Where the tokens are that are no padding, and what takes them out of rows and puts them back.

    The first token of a row is one of them whatever the mask says: classifiers are read from it.
    """

    def __init__(self, graph: Any, before: Any) -> None:
        import onnx_ir  # noqa: PLC0415 - an extra

        self._ir, self._graph = onnx_ir, graph
        self._packed, self._in_rows = dict[Any, Any](), dict[Any, Any]()
        boolean, integer = onnx_ir.DataType.BOOL, onnx_ir.DataType.INT64
        mask = next(value for value in graph.inputs if value.name == "attention_mask")
        self._tokens, column = onnx_ir.SymbolicDim("tokens"), [mask.shape[0], 1]
        start, one, end = (integers(graph, number) for number in (0, 1, np.iinfo(np.int64).max))

        given = insert(before, "Cast", [mask], shape=mask.shape, dtype=boolean, to=boolean)
        first = insert(before, "Slice", [given, start, one, one], shape=column)
        first = insert(before, "Or", [first, constant(graph, np.array(True))], shape=column)
        others = insert(before, "Slice", [given, one, end, one], shape=[mask.shape[0], None])
        self._kept = insert(before, "Concat", [first, others], shape=mask.shape, axis=1)

        flat = insert(before, "Reshape", [self._kept, integers(graph, -1)], shape=[None])
        places = insert(before, "NonZero", [flat], shape=[1, self._tokens], dtype=integer)
        self._places = insert(before, "Squeeze", [places, start], shape=[self._tokens])
        ones = insert(before, "Cast", [flat], shape=[None], dtype=integer, to=integer)
        counts = insert(before, "CumSum", [ones, constant(graph, np.array(0))], shape=[None])
        numbers = insert(before, "Sub", [counts, one], shape=[None])
        size = insert(before, "Shape", [mask], shape=[2], dtype=integer)
        self._numbers = insert(before, "Reshape", [numbers, size], shape=mask.shape)
        self._first = insert(before, "Gather", [self._numbers, start], shape=column, axis=1)

    def shape(self, value: Any) -> Any:
        """The shape (T, H) that states (B, S, H) have without padding."""
        return self._ir.Shape([self._tokens, value.shape[-1]])

    def packed(self, before: Any, value: Any) -> Any:
        """Return the tokens (T, H) of rows (B, S, H)."""
        if value not in self._packed:
            width = value.shape[-1]
            flat = insert(before, "Reshape", [value, integers(self._graph, -1, width)], shape=[None, width])
            self._packed[value] = insert(before, "Gather", [flat, self._places], shape=self.shape(value), axis=0)
        return self._packed[value]

    def in_rows(self, place: Any, value: Any, *, zeros: bool) -> Any:
        """Return rows (B, S, H) of tokens (T, H), at padding zeros, or where nobody reads it another token's."""
        if (value, zeros) not in self._in_rows:
            batch, length, _ = value.shape
            rows = insert(place, "Gather", [value, self._numbers], shape=value.shape, axis=0)
            if zeros:
                kept = insert(place, "Unsqueeze", [self._kept, integers(self._graph, 2)], shape=[batch, length, 1])
                zero = constant(self._graph, np.zeros(1, value.dtype.numpy()))
                rows = insert(place, "Where", [kept, rows, zero], shape=value.shape, dtype=value.dtype)
            self._in_rows[value, zeros] = rows
        return self._in_rows[value, zeros]

    def take_first(self, node: Any) -> None:
        """Let a node that takes the first token of rows take it out of all tokens."""
        index = self._first
        if rank(node.inputs[1]) == 0:
            index = insert(node, "Squeeze", [index, integers(self._graph, 1)], shape=index.shape[:1])
        node.replace_input_with(1, index)
        node.attributes.add(self._ir.AttrInt64("axis", 0))

    def output(self, value: Any) -> Any:
        """Return rows (B, S, H) of tokens (T, H) under the name of these, which is one of the graph's outputs."""
        rows = self.in_rows(self._graph, value, zeros=True)
        rows.name, value.name = value.name, f"{value.name}_tokens"
        return rows
