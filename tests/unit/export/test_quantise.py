"""Matrices in 8 bits, of layers that share their weights too."""

from __future__ import annotations

import onnx
import pytest
import torch

from tests.support.models import tiny_model
from tinybert_ds.export.convert import export_onnx
from tinybert_ds.export.quantise import layers_of, quantise_onnx
from tinybert_ds.export.runtimes import open_file

pytestmark = pytest.mark.slow  # a graph is traced

NAMES = ("input_ids", "attention_mask", "token_type_ids")
LAYERS, USED_IN_EACH = 3, 6  # query, key, value, output and the two matrices of the feed-forward part


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An ALBERT, whose layers are one, and its graph."""
    model = tiny_model("albert", labels=("a", "b"), num_hidden_layers=LAYERS)
    file = tmp_path_factory.mktemp("albert") / "model.onnx"
    export_onnx(model, NAMES, file, opset=24)
    return model, file


def test_weights_that_layers_share_are_written_once(shared):
    model, file = shared
    matrices = [tensor for tensor in onnx.load(file).graph.initializer if len(tensor.dims) == 2]
    floats = sum(tensor.dims[0] * tensor.dims[1] for tensor in matrices if tensor.data_type == onnx.TensorProto.FLOAT)
    assert floats == sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)


def test_a_layer_that_is_used_several_times_is_in_8_bits_each_time_or_never(shared, tmp_path):
    model, file = shared
    layers = layers_of(file)
    used = {name: len(nodes) for name, nodes in layers.items() if len(nodes) > 1}
    assert list(used.values()) == USED_IN_EACH * [LAYERS]
    in_float = next(name for name in used if name.endswith("query"))
    for kept, expected in (((), USED_IN_EACH * LAYERS), ((in_float,), (USED_IN_EACH - 1) * LAYERS)):
        target = tmp_path / "small.onnx"
        quantise_onnx(file, target, scales="dynamic", calibration=[], in_float=kept)
        kinds = [node.op_type for node in onnx.load(target).graph.node]
        assert kinds.count("MatMulInteger") - expected in (1, 2, 3), "beside these, what is in front and behind"
        feed = {name: torch.ones(2, 5, dtype=torch.long) for name in NAMES}
        with torch.no_grad():
            wanted = model(**feed).logits
        found = open_file("onnx", target, 1)({name: value.numpy() for name, value in feed.items()})
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=0.2, rtol=0)
