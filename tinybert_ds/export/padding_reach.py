"""How far padding reaches that is not computed: which numbers of a graph's values are then no longer the model's.

Every operator that may read such a number has to be known here, by how it moves the axes of rows and tokens.

B batch rows, S sequence length, A heads, D head size, H any width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinybert_ds.export.graph_nodes import BY_VECTOR, ELEMENTWISE, is_constant, is_integers, rank


@dataclass(frozen=True)
class _Rows:
    """Where the tokens of a batch's rows lie in a value, and what stands at padding."""

    batch: int
    tokens: int | None  # None: nothing depends on padding but, perhaps, keys
    keys: bool = False  # scores that are still to be masked: tokens lie along the last axis as well
    padding: float | None = None  # the number at padding that is the model's as well; None: it is not the model's

    @property
    def differ(self) -> bool:
        return self.padding is None and (self.tokens is not None or self.keys)


_Given = Sequence[_Rows | None]
_Masked = Collection[tuple[Any, int]]
_BY_TOKEN = _Rows(0, 1)
"""Of states (B, S, H) that are computed of tokens alone."""
_BLANK = _Rows(0, 1, padding=0)
"""Of masks (B, S), and of states (B, S, H) that were multiplied with one."""
_SAME = _Rows(0, None)
"""Of values that are the model's wherever they are read."""


def padding_is_read(graph: Any, by_token: Collection[Any], masked: _Masked, before_attention: Collection[Any]) -> bool:
    """Whether tokens would be others than the model's, or may be, if padding were none of those that nodes compute.

    Padding also counts as read by norms that are written with sums, as RMS norms are, before attention: these are not
    computed by token, and rows would be put together for each of them.

    Args:
        graph: An `onnx_ir.Graph` with an input "attention_mask" (B, S), 0 at padding.
        by_token: The nodes that are to compute states (B, S, H) of tokens alone.
        masked: Inputs of attention, by node and position, in which tokens do not see padding.
        before_attention: The nodes to which states at padding are given as any numbers, not as zeros.
    """
    rows = {value: _BLANK for value in graph.inputs if value.name == "attention_mask"}
    for node in graph:
        any_numbers = by_token if node in before_attention else ()
        given = [_BY_TOKEN if value and value.producer() in any_numbers else rows.get(value) for value in node.inputs]
        differing = [of for of in given if of and of.differ]
        if node in by_token:
            known = set(differing) <= {_BY_TOKEN}
            made: _Rows | None = _BLANK if node.op_type == "Mul" and _BLANK in given else _BY_TOKEN
        else:
            in_parts = node in before_attention and node.op_type.startswith("Reduce")
            made = None if in_parts else _made(node, given, masked)
            known = made is not None or not differing
        if not known:
            return True
        if made is None or (made.tokens is None and not made.keys):
            continue
        rows |= dict.fromkeys(node.outputs, made)
        if made.differ and any(_leaves(graph, value, made) for value in node.outputs):
            return True
    return False


def _leaves(graph: Any, value: Any, rows: _Rows) -> bool:
    """Whether unmasked scores are one of the graph's outputs, or something inside another node reads a value."""
    return (rows.keys and value.is_graph_output()) or any(use.node.graph is not graph for use in value.uses())


def _made(node: Any, given: _Given, masked: _Masked) -> _Rows | None:
    """The rows of what a node makes; None where its operator is not known, or makes tokens of others."""
    read = [value for value, of in zip(node.inputs, given, strict=True) if of]
    if node.domain or not read or any(rank(value) is None for value in (*read, node.outputs[0])):
        return None
    if node.op_type in _BY_SEVERAL:
        return _BY_SEVERAL[node.op_type](node, given, masked)
    if node.op_type in _ALONE:
        return _elementwise(node, given)
    if given[0] is None or any(given[1:]):
        return None
    if given[0].keys:
        return _of_scores(node, given[0], masked)
    follow = _BY_OPERATOR.get(node.op_type)
    return follow(node, given[0]) if follow else None


def _of_attention(node: Any, given: _Given, masked: _Masked) -> _Rows | None:
    """Of queries, keys and values (B, S, A * D) or (B, A, S, D)."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    for position, of in enumerate(given):
        right = _Rows(0, (rank(node.inputs[position]) or 0) - 2)
        if of and of.differ and (of != right or (node, position) not in masked):
            return None
    return given[0] if given[0] and given[0].differ else _SAME


def _of_product(node: Any, given: _Given, masked: _Masked) -> _Rows | None:
    """Of states and weights, of queries and keys, of what a softmax of scores makes and values."""
    size = len(node.outputs[0].shape)
    sides = [
        _shifted(of, size - (rank(v) or 0)) if of and of.differ else None
        for v, of in zip(node.inputs, given, strict=True)
    ]
    left, right = sides
    if any(rank(value) == 1 for value in node.inputs) or any(of and (of.keys or of.batch >= size - 2) for of in sides):
        return None
    if left and left.tokens == size - 1:
        return None
    if right and (node, 1) in masked:
        if left and (left.batch, left.tokens) != (right.batch, size - 2):
            return None
        if right.tokens == (size - 1 if (node, 0) in masked else size - 2):
            return _Rows(right.batch, left.tokens if left else None, keys=(node, 0) in masked)
    if right and (right.tokens == size - 2 or left not in (None, right)):
        return None
    return left or right


_ALONE = ELEMENTWISE | set(
    "Abs And Elu Equal Exp Greater HardSigmoid HardSwish Identity LeakyRelu Less Log Max Min Mish Not Or Reciprocal "
    "Selu Softplus Softsign Swish Where".split()
)
"""Operators that make each number of their result of those in its place."""
_BITS = {0: 0.0, 1: 1.0}
_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **{"Cast": _BITS.get, "Identity": float, "Not": operator.not_, "Equal": operator.eq, "Sub": operator.sub},
    **{"Mul": operator.mul, "Greater": operator.gt, "Less": operator.lt},
}
"""What masks are made with."""


def _elementwise(node: Any, given: _Given) -> _Rows | None:
    """Of numbers, one of which may be a mask: what is multiplied with 0 at padding, or replaced there, is known."""
    size = len(node.outputs[0].shape)
    placed = [_shifted(of, size - (rank(v) or 0)) if of else None for v, of in zip(node.inputs, given, strict=True)]
    differ = {of for of in placed if of and of.differ}
    places = differ or {replace(of, padding=None) for of in placed if of}
    if len(places) > 1:
        return None
    (place,) = places
    numbers = [
        of.padding if of and replace(of, padding=None) == place else _number(value)
        for value, of in zip(node.inputs, placed, strict=True)
    ]
    if node.op_type == "Where" and numbers[0] is not None:
        taken = 1 if numbers[0] else 2
        same = placed[taken] not in differ and numbers[taken] is None
        return _SAME if same else replace(place, padding=numbers[taken])
    made = 0 if node.op_type == "Mul" and 0 in numbers else None
    if made is None and node.op_type in _NUMBERS and None not in numbers:
        made = _NUMBERS[node.op_type](*numbers)
    if made is not None:
        return replace(place, padding=float(made))
    return place if differ else None


def _number(value: Any) -> float | None:
    """The only number of a constant."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _of_scores(node: Any, of: _Rows, masked: _Masked) -> _Rows | None:
    """Of the sum of scores and a mask, by the softmax that values are multiplied with."""
    values = any((use.node, 1) in masked and (use.node, 0) not in masked for use in node.outputs[0].uses())
    return replace(of, keys=False) if node.op_type == "Softmax" and values and _axis(node) == _last(node) else None


def _by_vector(node: Any, of: _Rows) -> _Rows | None:
    return _beside(of, *range(_axis(node), _last(node) + 1))


def _split(node: Any, of: _Rows) -> _Rows | None:
    return _beside(of, _axis(node, 0))


def _slice(node: Any, of: _Rows) -> _Rows | None:
    axes = _axes(node, 3)
    return None if axes is None else _beside(of, *axes)


def _concat(node: Any, given: _Given, _masked: _Masked) -> _Rows | None:
    """Of parts of the same tokens, some of which may be the model's at padding as well."""
    places = {of for of in given if of and of.differ}
    if len(places) != 1 or any(of.keys for of in places):
        return None
    return _beside(places.pop(), _axis(node, size=len(node.outputs[0].shape)))


def _gather(node: Any, of: _Rows) -> _Rows | None:
    """Of parts, or of the first token, which is computed whatever the mask says."""
    index, axis = node.inputs[1], _axis(node, 0)
    if axis == of.tokens:
        return _SAME if is_integers(index, 0) else None
    if axis == of.batch or rank(index) is None:
        return None
    more = len(index.shape) - 1
    return _moved(of, lambda old: old + more if old > axis else old)


def _gather_elements(node: Any, of: _Rows) -> _Rows | None:
    """Of the last token of each row, which is number sum(mask) - 1: padding stands behind the rows of such models."""
    states, index = node.inputs
    if len(states.shape) != 3 or of != _BY_TOKEN or _axis(node, 0) != 1 or rank(index) != 3:
        return None
    last = _behind(index, "Cast", "Expand", "Squeeze", "Unsqueeze").producer()
    if last is None or last.op_type != "Sub" or not is_integers(last.inputs[1], 1):
        return None
    lengths = _behind(last.inputs[0], "Cast").producer()
    if lengths is not None and lengths.op_type == "Clip" and is_integers(lengths.inputs[1], 1):
        lengths = _behind(lengths.inputs[0], "Cast").producer() if len(lengths.inputs) == 2 else None
    if lengths is None or lengths.op_type != "ReduceSum" or not is_integers(lengths.inputs[1], 1):
        return None
    summed, mask = lengths.inputs[0], _behind(lengths.inputs[0], "Cast", "Unsqueeze")
    of_mask = mask.name == "attention_mask" and summed.shape[:2] == mask.shape and index.shape[:2] == (mask.shape[0], 1)
    return _SAME if of_mask and isinstance(index.shape[2], int) else None


def _behind(value: Any, *operators: str) -> Any:
    """Of what a value is made by operators that leave its numbers as they are."""
    node = value.producer()
    return _behind(node.inputs[0], *operators) if node is not None and node.op_type in operators else value


def _transpose(node: Any, of: _Rows) -> _Rows | None:
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(_last(node), -1, -1)
    return _moved(of, list(order).index)


def _reshape(node: Any, of: _Rows) -> _Rows | None:
    """Of values whose axes up to those of rows and tokens stay."""
    kept = max(of.batch, of.tokens or 0) + 1
    before, after = node.inputs[0].shape[:kept], node.outputs[0].shape[:kept]
    known = all(isinstance(size, int) or size.value is not None for size in before)
    return of if known and before == after else None


def _unsqueeze(node: Any, of: _Rows) -> _Rows | None:
    axes = _axes(node, 1)
    if axes is None:
        return None
    kept = [axis for axis in range(_last(node) + 1) if axis not in axes]
    return _moved(of, kept.__getitem__)


def _squeeze(node: Any, of: _Rows) -> _Rows | None:
    axes = _axes(node, 1, len(node.inputs[0].shape))
    if axes is None or _beside(of, *axes) is None:
        return None
    return _moved(of, lambda old: old - sum(axis < old for axis in axes))


def _expand(node: Any, of: _Rows) -> _Rows | None:
    return _shifted(of, len(node.outputs[0].shape) - len(node.inputs[0].shape))


def _reduce(node: Any, of: _Rows) -> _Rows | None:
    """Of sums over anything but tokens."""
    size = len(node.inputs[0].shape)
    axes = [_axis(node, 0)] if node.op_type.startswith("Arg") else _axes(node, 1, size)
    if axes is None or _beside(of, *axes) is None:
        return None
    if "keepdims" not in node.attributes or node.attributes["keepdims"].as_int():
        return of
    return _moved(of, lambda old: old - sum(axis < old for axis in axes))


def _axis(node: Any, default: int = -1, size: int | None = None) -> int:
    """The axis that a node names, counted from the first; `size`: of how many, by default those of its first input."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    return axis % (len(node.inputs[0].shape) if size is None else size)


def _axes(node: Any, position: int, size: int | None = None) -> list[int] | None:
    """The axes that a constant input names, counted from the first; `size`: of how many, by default the output's.

    None where no constant names any.
    """
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None or not is_constant(value):
        return None
    size = len(node.outputs[0].shape) if size is None else size
    return [axis % size for axis in value.const_value.numpy().reshape(-1).tolist()] or None


def _last(node: Any) -> int:
    return len(node.outputs[0].shape) - 1


def _beside(of: _Rows, *axes: int) -> _Rows | None:
    """Rows of what an operator makes of what lies along some axes, if rows and tokens lie along others."""
    return None if of.batch in axes or of.tokens in axes else of


def _moved(of: _Rows, place: Callable[[int], int]) -> _Rows:
    return replace(of, batch=place(of.batch), tokens=None if of.tokens is None else place(of.tokens))


def _shifted(of: _Rows, by: int) -> _Rows:
    return _moved(of, lambda old: old + by)


_BY_OPERATOR: Mapping[str, Callable[[Any, _Rows], _Rows | None]] = {
    **dict.fromkeys((*BY_VECTOR, "LogSoftmax", "LpNormalization"), _by_vector),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax", "ArgMin"), _reduce),
    **{"Split": _split, "Slice": _slice, "Gather": _gather, "GatherElements": _gather_elements},
    **{"Transpose": _transpose, "Reshape": _reshape, "Expand": _expand},
    **{"Unsqueeze": _unsqueeze, "Squeeze": _squeeze},
    **{"Shape": lambda _node, _of: _SAME, "Size": lambda _node, _of: _SAME},
}
"""Operators whose first input alone is of tokens; what none of these tables knows, may make tokens of others."""
_BY_SEVERAL: Mapping[str, Callable[[Any, _Given, _Masked], _Rows | None]] = {
    **{"Attention": _of_attention, "MatMul": _of_product, "Concat": _concat}
}
"""Operators of which several inputs may be of tokens."""
