"""Matrices in 8 bits, of layers that share their weights too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from tests.support.models import tiny_model
from tinybert_ds.export import convert
from tinybert_ds.export.convert import export_onnx, read_openvino
from tinybert_ds.export.quantise import layers_of, openvino_layers, quantise_onnx
from tinybert_ds.export.runtimes import open_file

pytestmark = pytest.mark.slow  # a graph is traced

NAMES = ("input_ids", "attention_mask", "token_type_ids")
LAYERS, USED_IN_EACH = 3, 6  # query, key, value, output and the two matrices of the feed-forward part


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An ALBERT, whose layers are one, and its graph."""
    model = tiny_model("albert", labels=("a", "b"), num_hidden_layers=LAYERS)
    torch.nn.init.ones_(model.classifier.bias)  # OpenVINO leaves out what is zero, and names the product otherwise
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


def test_layers_of_openvino_are_named_as_the_modules_are_and_each_once(shared):
    model, file = shared
    layers, modules = openvino_layers(read_openvino(file)), dict(model.named_modules())
    assert [name for name in layers if not isinstance(modules.get(name), torch.nn.Linear)] == []
    assert [len(operations) for operations in layers.values()] == [1, *USED_IN_EACH * [LAYERS], 1, 1]


def test_a_graph_of_which_all_layers_stay_in_float_has_its_own_weights_beside_it(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "EXTERNAL_DATA_FROM", 1000)
    _, file = shared
    target = tmp_path / "small.onnx"
    quantise_onnx(file, target, scales="dynamic", calibration=[], in_float=list(layers_of(file)))
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.onnx_data"}
    feed = {name: np.ones((2, 5), np.int64) for name in NAMES}
    np.testing.assert_allclose(open_file("onnx", target, 1)(feed), open_file("onnx", file, 1)(feed), atol=1e-6)
