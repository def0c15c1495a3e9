"""Where a graph masks padding: in ONNX's attention with a mask, and in a softmax of products to which one was added.

B batch rows, A heads, S sequence length, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from tinybert_ds.export.graph_nodes import is_constant, last_axis_alone

_STATES, _MASK = (0, 1, 2), 3
"""Positions of queries, keys and values, and of the mask, among the inputs of ONNX's attention."""
_OF_WEIGHTS = frozenset(("MatMul", "Gemm", "Conv"))
"""What is made of a mask by these is a mask no more, nor what is looked up by it, as positions look up embeddings."""


def masked_places(graph: Any) -> Collection[tuple[Any, int]]:
    """Return the inputs of nodes, by node and position, in which no row of a batch sees the padding of its others.

    These are queries, keys and values of attention: what a token of padding has there reaches such tokens alone.
    """
    masks = _made_of_mask(graph)
    found = set()
    for node in graph:
        if node.op_type == "Attention" and len(node.inputs) > _MASK and node.inputs[_MASK] in masks:
            found |= {(node, position) for position in _STATES}
        elif node.op_type == "Softmax" and last_axis_alone(node):
            found |= set(_of_softmax(node, masks))
    return found


def _made_of_mask(graph: Any) -> Collection[Any]:
    """The values that are made of the tokeniser's mask, by nothing that has weights."""
    found = {value for value in graph.inputs if value.name == "attention_mask"}
    for node in graph:
        read = node.inputs[:1] if node.op_type == "Gather" else node.inputs
        if node.op_type not in _OF_WEIGHTS and any(value in found for value in read):
            found.update(node.outputs)
    return found


def _of_softmax(softmax: Any, masks: Collection[Any]) -> Iterator[tuple[Any, int]]:
    """Queries and keys of masked scores (B, A, S, S), and the values that their softmax is multiplied with."""
    masked = softmax.inputs[0].producer()
    scores = [value for value in masked.inputs if value not in masks] if masked is not None else []
    if not scores or masked.op_type != "Add" or len(scores) == len(masked.inputs):
        return
    for product in _products(scores[0]):
        yield from ((product, 0), (product, 1))
    for use in softmax.outputs[0].uses():
        if use.node.op_type == "MatMul" and use.idx == 0:
            yield use.node, 1


def _products(scores: Any) -> Iterator[Any]:
    """The products of states that scores are made of, scaled and added up."""
    node = scores.producer()
    if node is None:
        return
    if node.op_type == "MatMul" and not any(is_constant(value) for value in node.inputs):
        yield node
    elif node.op_type in ("Add", "Mul", "Div"):
        for value in node.inputs:
            if not is_constant(value):
                yield from _products(value)
