"""Matrices in 8 bits: of ONNX graphs by ONNX Runtime's tools, of OpenVINO models by NNCF.

Weights have a scale for each output channel. They keep 7 bits on ONNX: on CPUs without VNNI instructions the products
of 8 bits overflow, and a file should say the same on every machine.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tinybert_ds.export.convert import AGAIN, MATRIX_OPS, copy_onnx
from tinybert_ds.export.runtimes import Feed

Scales = Literal["dynamic", "static"]
"""Whether the scales of activations are computed for each batch or fixed beforehand."""


def layers_of(file: Path) -> dict[str, list[str]]:
    """Return the layers of an ONNX graph that have a matrix of weights: name of the module -> names of its nodes,
    several where its weights are used more than once, as those of ALBERT are; see `convert.name_after_modules`."""
    import onnx  # noqa: PLC0415 - an extra

    graph = onnx.load(str(file), load_external_data=False).graph
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    layers: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in MATRIX_OPS and matrices & set(node.input):
            layers.setdefault(node.name.partition(AGAIN)[0], []).append(node.name)
    return layers


def quantise_onnx(
    source: Path, target: Path, *, scales: Scales, calibration: Sequence[Feed], in_float: Collection[str] = ()
) -> None:
    """Write an ONNX graph with its matrices in 8 bits.

    Args:
        source: The graph in float32.
        calibration: Rows that fix the scales of "static".
        in_float: Layers that stay as they are, by the names of `layers_of`.
    """
    from onnxruntime import quantization as tools  # noqa: PLC0415 - an extra

    layers = layers_of(source).items()
    shared: dict[str, Any] = {
        "op_types_to_quantize": list(MATRIX_OPS),
        "nodes_to_quantize": [node for layer, nodes in layers if layer not in in_float for node in nodes],
        "per_channel": True,
        "reduce_range": True,
        "weight_type": tools.QuantType.QInt8,
    }
    if not shared["nodes_to_quantize"]:
        copy_onnx(source, target)
        return
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a preparation that these graphs have had
    try:
        if scales == "dynamic":
            tools.quantize_dynamic(_without_stale_shapes(source), str(target), **shared)
        else:
            model, rows = _without_stale_shapes(source), _Rows(calibration)
            tools.quantize_static(model, str(target), rows, activation_type=tools.QuantType.QUInt8, **shared)
    finally:
        root.setLevel(level)


def openvino_layers(model: Any) -> dict[str, list[str]]:
    """Return the layers of an `openvino.Model` that multiply by a matrix of weights, as `layers_of` does.

    OpenVINO names an operation as the node that it read, with a slash behind it where it made several of one.
    """
    layers: dict[str, list[str]] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "MatMul" and _is_weight(op.input_value(1).get_node()):
            name = op.get_friendly_name()
            layers.setdefault(name.partition("/")[0].partition(AGAIN)[0], []).append(name)
    return layers


def quantise_openvino(model: Any, calibration: Sequence[Feed], in_float: Collection[str] = ()) -> Any:
    """Return an `openvino.Model` with its matrices and what they multiply in 8 bits, scales from the calibration.

    Args:
        model: In float32; it stays as it is.
        in_float: Layers that stay as they are, by the names of `openvino_layers`.
    """
    import nncf  # noqa: PLC0415 - an extra

    nncf.set_log_level(logging.ERROR)
    names = [port.get_any_name() for port in model.inputs]
    rows = nncf.Dataset([{name: feed[name] for name in names} for feed in calibration])
    layers = openvino_layers(model)
    kept = nncf.IgnoredScope(names=[name for layer in in_float for name in layers[layer]]) if in_float else None
    kind = nncf.ModelType.TRANSFORMER
    return nncf.quantize(model.clone(), rows, model_type=kind, subset_size=len(calibration), ignored_scope=kept)


def _is_weight(node: Any) -> bool:
    """Whether a value is a constant, behind what changes its type or shape alone."""
    while node.get_type_name() in ("Convert", "Reshape", "Transpose", "Multiply", "Subtract") and node.inputs():
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


class _Rows:
    """What ONNX Runtime reads calibration rows from."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next rows, None behind the last ones."""
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def _without_stale_shapes(source: Path) -> Any:
    """The graph without shapes of its weights: the tools transpose some of these, and then trip over the old shape."""
    import onnx  # noqa: PLC0415 - an extra

    model = onnx.load(str(source))
    weights = {tensor.name for tensor in model.graph.initializer}
    others = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    return model
