"""Graphs that compute the first token alone, and no padding, beside the models that they were made of."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, parser, shape_inference
from onnx.helper import make_tensor_value_info
from transformers import AutoModelForTokenClassification, ModernBertConfig, ModernBertForSequenceClassification

from tests.support.models import ARCHITECTURES, VOCAB_SIZE, tiny_config, tiny_model
from tinybert_ds.export.attention import OPERATOR_FROM
from tinybert_ds.export.convert import drop_padding_of, export_onnx
from tinybert_ds.export.first_token import compute_first_token_alone
from tinybert_ds.export.padding import drop_padding
from tinybert_ds.export.runtimes import STATES, VECTORS, open_file
from tinybert_ds.export.vectors import VectorModel
from tinybert_ds.models.sentence.head import SentenceHead
from tinybert_ds.models.sentence.modules import SentenceModules

NAMES = ("input_ids", "attention_mask")


def rows_of(*lengths, left=False):
    """Rows of noise with padding behind them, or in front."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    mask = mask[:, ::-1].copy() if left else mask
    ids = np.random.default_rng(0).integers(5, VOCAB_SIZE, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask}


ROWS = [rows_of(7), rows_of(1), rows_of(9, 4, 1), rows_of(3, 3), rows_of(5, 12, 2, 7)]


def modern():
    """Rotary positions, local attention and a gated feed-forward part."""
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=VOCAB_SIZE, pad_token_id=0, num_labels=3, local_attention=4, classifier_pooling="cls", **sizes
    )
    return ModernBertForSequenceClassification(config).eval()


def classifier(kind="bert"):
    return modern() if kind == "modernbert" else tiny_model(kind, labels=("a", "b", "c"))


def answer(model, feed, name="logits"):
    with torch.no_grad():
        return model(**{key: torch.from_numpy(value) for key, value in feed.items()})[name].numpy()


def written(model, folder, *, opset=OPERATOR_FROM):
    """The files of a model's graph with padding and without."""
    export_onnx(model, NAMES, folder / "padded.onnx", opset=opset)
    drop_padding_of(folder / "padded.onnx", folder / "tokens.onnx")
    return folder / "padded.onnx", folder / "tokens.onnx"


def run_all(file, feed):
    """What every node of a graph makes, by its operator, in the graph's order."""
    model = onnx.load(file)
    made = [(node.op_type, node.output[0]) for node in model.graph.node]
    outputs = {value.name for value in model.graph.output}
    known = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(
        known.get(name, make_tensor_value_info(name, TensorProto.FLOAT, None))
        for operator, name in made
        if operator in ("Gelu", "MatMul", "LayerNormalization") and name not in outputs
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(names, dict(feed)), strict=True))
    return [(operator, values[name]) for operator, name in made if name in values]


@pytest.mark.slow  # graphs are traced
@pytest.mark.parametrize(
    "kind",
    [
        *(("bert", "distilbert", "modernbert")),
        *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ARCHITECTURES if not kind.endswith("bert")),
        *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("albert", "camembert", "mobilebert")),
        *("convbert", "fnet"),  # whose other tokens read padding, behind no mask
    ],
)
def test_the_logits_are_those_of_the_model_with_and_without_padding(kind, tmp_path):
    model = classifier(kind)
    for file in written(model, tmp_path):
        run = open_file("onnx", file, 1)
        for feed in ROWS:
            np.testing.assert_allclose(run(feed), answer(model, feed), atol=2e-5, err_msg=file.name)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, OPERATOR_FROM])
def test_the_last_layer_computes_one_token_but_for_keys_and_values_whatever_form_attention_has(opset, tmp_path):
    model, feed = classifier(), rows_of(5, 9, 3)
    padded, _ = written(model, tmp_path, opset=opset)
    sizes = [(operator, value.shape[1]) for operator, value in run_all(padded, feed) if value.ndim == 3]
    layers, product, norm, gelu = model.config.num_hidden_layers, "MatMul", "LayerNormalization", "Gelu"
    behind = [product, norm, product, gelu, product, norm]
    usual = [(operator, 9) for operator in (*3 * [product], *behind)]
    last = [(product, 1), *2 * [(product, 9)], *((operator, 1) for operator in behind)]
    assert sizes == [(norm, 9), *(layers - 1) * usual, *last]
    np.testing.assert_allclose(open_file("onnx", padded, 1)(feed), answer(model, feed), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, OPERATOR_FROM])
@pytest.mark.parametrize(
    "kind", ["modernbert", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ARCHITECTURES)]
)
def test_products_see_no_padding_whatever_stands_between_them(kind, opset, tmp_path):
    """A gated feed-forward part, rotary positions, GELU by its formula, positions behind the first product."""
    model, feed = classifier(kind), rows_of(5, 9, 3)
    _, tokens = written(model, tmp_path, opset=opset)
    wide = [
        value.shape for operator, value in run_all(tokens, feed) if operator == "MatMul" and value.shape[:2] == (3, 9)
    ]
    assert not wide


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, OPERATOR_FROM])
def test_no_product_of_a_layer_sees_padding(opset, tmp_path):
    model, feed = classifier(), rows_of(5, 9, 3)
    _, tokens = written(model, tmp_path, opset=opset)
    products = [value for operator, value in run_all(tokens, feed) if operator == "MatMul" and value.ndim < 4]
    layers = model.config.num_hidden_layers
    assert [value.shape[0] for value in products] == [*(layers - 1) * 6 * [5 + 9 + 3], 3, *2 * [5 + 9 + 3], *3 * [3]]
    for feed in ROWS:
        np.testing.assert_allclose(open_file("onnx", tokens, 1)(feed), answer(model, feed), atol=2e-5)


@pytest.mark.slow
def test_the_first_token_is_read_as_the_model_reads_it_where_it_is_padding_and_rows_may_be_empty(tmp_path):
    model = classifier()
    for file in written(model, tmp_path):
        run, left, empty = open_file("onnx", file, 1), rows_of(4, 9, 1, left=True), rows_of(6, 0, 2)
        np.testing.assert_allclose(run(left), answer(model, left), atol=2e-5)
        np.testing.assert_allclose(run(empty)[[0, 2]], answer(model, empty)[[0, 2]], atol=2e-5)
        nothing = {name: np.zeros((2, 3), np.int64) for name in NAMES}
        assert np.isfinite(run(nothing)).all()


@pytest.mark.slow
def test_logits_of_tokens_are_the_model_s_and_zero_at_padding(tmp_path):
    config = tiny_config()
    config.num_labels = 5
    model = AutoModelForTokenClassification.from_config(config).eval()
    _, tokens = written(model, tmp_path)
    run = open_file("onnx", tokens, 1)
    for feed in ROWS:
        wanted = answer(model, feed) * feed["attention_mask"][:, :, None]
        np.testing.assert_allclose(run(feed), wanted, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.exhaustive), OPERATOR_FROM])
@pytest.mark.parametrize(
    "pooling", [("mean",), ("cls",), ("max", "lasttoken"), ("weightedmean", "mean_sqrt_len_tokens")]
)
def test_vectors_are_those_of_the_model_and_states_zero_at_padding(pooling, opset, tmp_path):
    model = VectorModel(tiny_model(), SentenceHead(SentenceModules(pooling, ()))).eval()
    padded, tokens = written(model, tmp_path, opset=opset)
    session = onnx_session(tokens)
    for feed in ROWS:
        vectors, states = session.run([VECTORS, STATES], dict(feed))
        np.testing.assert_allclose(vectors, answer(model, feed, VECTORS), atol=2e-5)
        np.testing.assert_allclose(vectors, open_file("onnx", padded, 1)(feed), atol=2e-5)
        np.testing.assert_allclose(states, answer(model, feed, STATES) * feed["attention_mask"][:, :, None], atol=2e-5)


def onnx_session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


HEADER = """
<ir_version: 10, opset_import: ["": 24]>
graph (int64[B, S] input_ids, int64[B, S] attention_mask, float[B, S, 4] states) => ({outputs})
<float[4, 4] w, float[4] bias, float[4] norm, int64 first>
"""


def graph_of(nodes, outputs="float[B, 4] answer", **constants):
    """An `onnx_ir.Model` of nodes in ONNX's textual form, with weights w, bias and norm of noise."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(HEADER.format(outputs=outputs) + "{" + nodes + "}")
    del model.graph.value_info[:]
    values = {"w": rng.normal(size=(4, 4)), "bias": rng.normal(size=4), "norm": rng.normal(size=4)}
    for name, value in values.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    for name, value in {"first": np.array(0), **constants}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return onnx_ir.from_proto(shape_inference.infer_shapes(model, strict_mode=True))


def operators(program):
    return [node.op_type for node in program.graph]


FEED_FORWARD = """
    product = MatMul(states, w)
    shifted = Add(product, bias)
    summed = Add(shifted, states)
    normed = LayerNormalization<axis = -1>(summed, norm)
"""


def test_what_is_read_of_the_first_token_alone_is_made_of_it_and_everything_else_stays():
    program = graph_of(FEED_FORWARD + "answer_of_one = Gather<axis = 1>(normed, first) answer = Tanh(answer_of_one)")
    compute_first_token_alone(program.graph)
    assert operators(program) == ["Gather", "MatMul", "Add", "Add", "LayerNormalization", "Squeeze", "Tanh"]
    assert [node.outputs[0].shape[1] for node in program.graph][:5] == 5 * [1]

    read_whole = "first_one = Gather<axis = 1>(normed, first) answer = Tanh(first_one) whole = Tanh(summed)"
    program = graph_of(FEED_FORWARD + read_whole, "float[B, 4] answer, float[B, S, 4] whole")
    compute_first_token_alone(program.graph)
    kinds = ["MatMul", "Add", "Add", "Gather", "LayerNormalization", "Squeeze", "Tanh", "Tanh"]
    assert operators(program) == kinds, "what is read whole is computed whole"


@pytest.mark.parametrize(
    "nodes",
    [
        FEED_FORWARD + "answer = Gather<axis = 1>(normed, first)",  # the output itself
        FEED_FORWARD + "one = Gather<axis = 1>(normed, second) answer = Tanh(one)",  # another token
        FEED_FORWARD + "mean = ReduceMean<keepdims = 0>(normed, axes) answer = Tanh(mean)",  # all tokens
        "one = Gather<axis = 1>(states, first) answer = Tanh(one)",  # nothing to save
    ],
)
def test_a_graph_of_which_more_is_read_stays_as_it_is(nodes):
    program = graph_of(nodes, second=np.array(1), axes=np.array([1]))
    before = operators(program)
    compute_first_token_alone(program.graph)
    assert operators(program) == before


ATTENTION = """
    kept = Cast<to = 9>(attention_mask) keys = Unsqueeze(kept, inner)
    queries = Unsqueeze(kept, outer) others = Not(queries) all = Or(queries, others) seen = And(keys, all)
    q = MatMul(normed, w) k = MatMul({key}, w)
    read = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, k{mask})
    last = MatMul(read, w)
"""
PRODUCTS = """
    kept = Cast<to = 9>(attention_mask) seen = Unsqueeze(kept, second) added = Where(seen, zero, low)
    q = MatMul(normed, w) k = MatMul({key}, w) turned = Transpose<perm = [0, 2, 1]>(k)
    product_of_states = MatMul(q, turned) scores = Mul(product_of_states, half)
    weights = Softmax<axis = -1>({scores}) read = MatMul(weights, k)
    last = MatMul(read, w)
"""


MAXIMUM = """
    column = Unsqueeze(kept, third) shown = Where(column, {of}, low)
    answer = ReduceMax<keepdims = 0>(shown, axes)
"""


def between(attention=ATTENTION, *, more="", behind="", of="last", pooling=MAXIMUM, **parts):
    """A graph of two layers' parts with attention between them, of which the largest numbers over tokens are read."""
    given = {"key": "normed", "mask": ", seen", "scores": "masked", **parts}
    attention = attention.replace("weights =", "masked = Add(scores, added) weights =")
    kernel = np.random.default_rng(1).normal(size=(4, 4, 3)).astype(np.float32)
    lists = {
        "axes": [1],
        "second": [1],
        "third": [2],
        "inner": [1, 2],
        "outer": [1, 3],
        "start": [0],
        "end": [99],
        "back": [-99],
        "widths": [1, 1, 4],
        "final": [-1],
        "room": [0, 0, 0, 0, 1, 0],
        "pairs": [0, -1, 8],
        "singles": [0, -1, 4],
    }
    return graph_of(
        FEED_FORWARD + more + attention.format(**given) + behind + pooling.format(of=of),
        **{name: np.array(value) for name, value in {"one": 1, **lists}.items()},
        **{
            name: np.array(value, np.float32) for name, value in (("zero", 0), ("unit", 1), ("low", -60), ("half", 0.5))
        },
        kernel=kernel,
    )


@pytest.mark.parametrize("attention", [ATTENTION, PRODUCTS])
def test_products_before_and_behind_attention_are_of_tokens(attention):
    program = between(attention, more="halves_a, halves_b = Split<axis = 2, num_outputs = 2>(normed) ")
    drop_padding(program.graph)
    products = [node for node in program.graph if node.op_type == "MatMul"]
    assert [rank_of(node) for node in products] == [2, 2, 2, *(2 * [3] if attention is PRODUCTS else ()), 2]
    assert "Where" in operators(program), "behind the last attention padding is zero"
    axes = [
        node.attributes["axis"].as_int() for node in program.graph if node.op_type in ("Split", "LayerNormalization")
    ]
    assert axes == [-1, -1]


INSIDE = """
    flag = ReduceMax<keepdims = 0>(kept)
    moved = If (flag) <then_branch = yes () => (float[B, S, 4] y) { y = CumSum(last, one) },
                       else_branch = no () => (float[B, S, 4] z) { z = Tanh(last) }>
"""
SHIFTED = """
    later = Slice({of}, second, end, second) earliest = Slice({of}, start, second, second)
    mixed = Concat<axis = 1>(later, earliest)
"""


@pytest.mark.parametrize(
    "how",
    [
        {"more": "sums = CumSum(normed, one)", "key": "sums"},
        {"more": "later = Gather<axis = 1>(normed, second) summed_up = Add(normed, later)", "key": "summed_up"},
        {"more": SHIFTED.format(of="normed"), "key": "mixed"},
        {"mask": ""},
        {"attention": PRODUCTS, "scores": "scores"},
        {"attention": PRODUCTS, "more": "sums = CumSum(normed, one)", "key": "sums"},
        {
            "more": "squares = Mul(normed, normed) sums = ReduceSum(squares, third) made = Div(normed, sums)",
            "key": "made",
        },
        {"attention": PRODUCTS, "behind": "peaks = ReduceMax(scores, third)"},
        {"behind": INSIDE},
        {"behind": "moved = Tanh(last) again = Attention<q_num_heads = 2, kv_num_heads = 2>(moved, moved, moved)"},
        {"behind": "columns = Transpose<perm = [0, 2, 1]>(last) products = MatMul(last, columns)"},
    ],
)
def test_padding_that_may_be_read_by_other_ways_than_attention_with_a_mask_is_computed(how):
    program = between(**how)
    before = operators(program)
    drop_padding(program.graph)
    assert operators(program) == before


def test_a_graph_without_products_of_tokens_or_without_attention_stays_as_it_is():
    program = graph_of(FEED_FORWARD + "answer = ReduceMax<keepdims = 0>(normed, axes)", axes=np.array([1]))
    drop_padding(program.graph)
    assert operators(program) == ["MatMul", "Add", "Add", "LayerNormalization", "ReduceMax"]

    program = graph_of("moved = Add(states, bias) one = Gather<axis = 1>(moved, first) answer = Tanh(one)")
    drop_padding(program.graph)
    assert operators(program) == ["Add", "Gather", "Tanh"]


def rank_of(node):
    return len(node.outputs[0].shape)
