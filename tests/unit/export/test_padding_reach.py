"""Graphs that make something of states behind attention: their padding is dropped where no token becomes another."""

from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from tests.unit.export.test_fewer_tokens import ATTENTION, PRODUCTS, SHIFTED, between, operators, rank_of
from tinybert_ds.export.padding import drop_padding

COLUMNS = "columns = Transpose<perm = [0, 2, 1]>({of}) "
MIXING = {
    "convolution": COLUMNS + "made = Conv<pads = [1, 1]>(columns, kernel) mixed = Transpose<perm = [0, 2, 1]>(made)",
    "sums of the tokens behind": "mixed = CumSum<reverse = 1>({of}, one)",
    "shift": SHIFTED,
    "shift into room": "more = Pad({of}, room) mixed = Slice(more, second, end, second)",
    "softmax over tokens": "mixed = Softmax<axis = 1>({of})",
    "mean of all tokens": "mixed = ReduceMean<keepdims = 1>({of}, axes)",
    "largest of all tokens": "mixed = ReduceMax<keepdims = 1>({of}, axes)",
    "softmax of two tokens": "two = Reshape({of}, pairs) made = Softmax<axis = -1>(two) mixed = Reshape(made, singles)",
    "norm of each number": COLUMNS
    + "made = InstanceNormalization(columns, norm, bias) mixed = Transpose<perm = [0, 2, 1]>(made)",
    "length over tokens": "mixed = LpNormalization<axis = 1>({of})",
    "last column": "mixed = Gather<axis = 1>({of}, final)",
    "weights from the left": "made = MatMul(w, {of}) mixed = ReduceMax<keepdims = 1>(made, axes)",
    "largest token": "mixed, places = TopK<axis = 1>({of}, second)",
    "equation": 'mixed = Einsum<equation = "bsh,bth->bth">({of}, {of})',
    "products of tokens": COLUMNS + "products = MatMul({of}, columns) mixed = MatMul(products, {of})",
}


def rows(*lengths):
    """Inputs of rows with padding behind them."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    states = np.random.default_rng(0).normal(size=(*mask.shape, 4)).astype(np.float32)
    return {"input_ids": mask, "attention_mask": mask, "states": states}


def answers(program, feed):
    """What a graph makes of inputs: for each row a vector (B, 4)."""
    file = onnx_ir.to_proto(program).SerializeToString()
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize("of", ["read", "last"])
@pytest.mark.parametrize("attention", [ATTENTION, PRODUCTS])
@pytest.mark.parametrize("how", MIXING)
def test_padding_stays_where_tokens_are_made_of_others_behind_attention(how, attention, of):
    program = between(attention, behind=MIXING[how].format(of=of) + " both = Add(last, mixed)", of="both")
    before = operators(program)
    wanted = answers(program, rows(4, 2))
    drop_padding(program.graph)
    assert operators(program) == before
    np.testing.assert_array_equal(answers(program, rows(4, 2)), wanted)


SUM = "answer = ReduceSum<keepdims = 0>({of}, axes)"
MASK = "floats = Cast<to = 1>(attention_mask) column = Unsqueeze(floats, third) "
MASKED = {
    "sum of products with the mask": MASK + "shown = Mul({of}, column) " + SUM.format(of="shown"),
    "sum without what is masked": """
        column = Unsqueeze(kept, third) hidden = Not(column) shown = Where(hidden, zero, {of})
    """
    + SUM.format(of="shown"),
    "weights by place": MASK
    + "flat = Squeeze(column, third) places = CumSum(flat, one) by_place = Mul(flat, places) "
    + "weights_of = Unsqueeze(by_place, third) shown = Mul({of}, weights_of) "
    + SUM.format(of="shown"),
    "1 - mask": MASK
    + "others_of = Sub(unit, column) gone = Cast<to = 9>(others_of) shown = Where(gone, low, {of}) "
    + "answer = ReduceMax<keepdims = 0>(shown, axes)",
    "last token": """
        lengths = ReduceSum<keepdims = 1>(attention_mask, axes) final_one = Sub(lengths, second)
        column = Unsqueeze(final_one, third) places = Expand(column, widths)
        taken = GatherElements<axis = 1>({of}, places) answer = Squeeze(taken, axes)
    """,
    "first token": "answer = Gather<axis = 1>({of}, first)",
}
UNMASKED = {
    "sum": SUM,
    "sum of sums with the mask": MASK + "shown = Add({of}, column) " + SUM.format(of="shown"),
    "sum of products with the mask turned round": MASK
    + "turned_round = Slice(column, final, back, second, final) shown = Mul({of}, turned_round) "
    + SUM.format(of="shown"),
    "what the mask hides": "column = Unsqueeze(kept, third) shown = Where(column, zero, {of}) "
    + SUM.format(of="shown"),
    "token behind the last": """
        lengths = ReduceSum<keepdims = 1>(attention_mask, axes) column = Unsqueeze(lengths, third)
        places = Expand(column, widths) taken = GatherElements<axis = 1>({of}, places) answer = Squeeze(taken, axes)
    """,
    "token behind the last, by a difference": """
        lengths = ReduceSum<keepdims = 1>(attention_mask, axes) number = Sub(lengths, start)
        column = Unsqueeze(number, third) places = Expand(column, widths)
        taken = GatherElements<axis = 1>({of}, places) answer = Squeeze(taken, axes)
    """,
    "last column": """
        size = Shape<start = 1>(attention_mask) number = Sub(size, second) taken = Gather<axis = 1>({of}, number)
        answer = Squeeze(taken, axes)
    """,
}
APART = {
    "softmax": "made = Softmax<axis = -1>({of})",
    "length": "made = LpNormalization<axis = -1>({of})",
    "length by sums": "squares = Mul({of}, {of}) sum = ReduceSum(squares, third)"
    " root = Sqrt(sum) made = Div({of}, root)",
    "halves": """
        left = Slice({of}, start, second, third) right = Slice({of}, second, end, third)
        made = Concat<axis = -1>(right, left)
    """,
    "turned": COLUMNS + "made = Transpose<perm = [0, 2, 1]>(columns)",
    "part": "part = Gather<axis = 2>({of}, one) made = Unsqueeze(part, third)",
}


@pytest.mark.parametrize("of", ["read", "last"])
@pytest.mark.parametrize("attention", [ATTENTION, PRODUCTS])
@pytest.mark.parametrize("pooling", MASKED)
def test_padding_goes_where_a_mask_stands_before_what_all_tokens_are_read_by(pooling, attention, of):
    assert_padding_goes(between(attention, of=of, pooling=MASKED[pooling]))


@pytest.mark.parametrize("of", ["read", "last"])
@pytest.mark.parametrize("attention", [ATTENTION, PRODUCTS])
@pytest.mark.parametrize("how", APART)
def test_padding_goes_where_each_token_is_made_of_itself(how, attention, of):
    assert_padding_goes(between(attention, behind=APART[how].format(of=of) + " both = Add(last, made)", of="both"))


@pytest.mark.parametrize("of", ["read", "last"])
@pytest.mark.parametrize("pooling", UNMASKED)
def test_padding_stays_where_all_tokens_are_read_and_no_mask_is_seen(pooling, of):
    program = between(of=of, pooling=UNMASKED[pooling])
    before = operators(program)
    drop_padding(program.graph)
    assert operators(program) == before


def assert_padding_goes(program):
    feeds = [rows(4, 2), rows(1, 5, 3), rows(3)]
    wanted = [answers(program, feed) for feed in feeds]
    drop_padding(program.graph)
    assert 2 in [rank_of(node) for node in program.graph if node.op_type == "MatMul"]
    for feed, vectors in zip(feeds, wanted, strict=True):
        np.testing.assert_allclose(answers(program, feed), vectors, atol=1e-5)
