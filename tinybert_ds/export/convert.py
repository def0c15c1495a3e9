"""From a model to graphs of other runtimes: transformers' exporter traces it with torch.export and writes ONNX, which
OpenVINO reads.

Batch and length are dynamic in every graph; inputs are what the tokeniser gives, the output is "logits" (B, C), of
models that answer for each token (B, S, C), or what `vectors.VectorModel` returns.
"""

from __future__ import annotations

import ast
import logging
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinybert_ds.errors import ModelError
from tinybert_ds.export.attention import OPERATOR_FROM, served_attention
from tinybert_ds.export.first_token import compute_first_token_alone
from tinybert_ds.export.graph_nodes import is_constant, rank
from tinybert_ds.export.padding import drop_padding
from tinybert_ds.models.capture import uses_plain_sdpa
from tinybert_ds.models.foreign import foreign_code

EXTERNAL_DATA_FROM = 2**30
"""Bytes of weights from which on they stand in a file beside an ONNX graph, which cannot grow beyond two of these."""

MATRIX_OPS = ("MatMul", "Gemm", "Gather")
"""Operators of which one input may be a matrix of weights."""
AGAIN = ":"
"""Stands between the name of a module and a number in the name of a node that uses its weights once more."""
_SCOPES = "pkg.torch.onnx.name_scopes"

_ADVICE = "this architecture cannot be exported by the installed transformers and torch; leave the format out"


def export_onnx(model: nn.Module, input_names: Sequence[str], file: Path, *, opset: int) -> None:
    """Write a model as an ONNX graph in float32, in the form that ONNX Runtime computes fastest on CPUs but for
    padding, which is computed.

    Raises:
        ModelError: The architecture cannot be traced, or not be written in this operator set.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass  # noqa: PLC0415 - an extra

    with served_attention(getattr(model, "transformer", model), opset=opset):
        program = traced_onnx(model, input_names, opset=opset)
    name_after_modules(program.graph)
    for change in (_keep_sums_apart, _leave_heads_together, _write_shared_weights_once, compute_first_token_alone):
        change(program.graph)
        RemoveUnusedNodesPass()(program)  # what nobody reads any more would be taken for a reader
    save_onnx(program, file)


def traced_onnx(model: nn.Module, input_names: Sequence[str], *, opset: int) -> Any:
    """Return a model as the exporter's `onnx_ir.Model`; see `export_onnx`."""
    from transformers.exporters import OnnxConfig, OnnxExporter  # noqa: PLC0415 - an extra

    with _traced(model, "ONNX"):
        config = OnnxConfig(dynamic=True, dynamic_shapes=_shapes(input_names), opset_version=opset)
        program = OnnxExporter().export(model, _sample(model, input_names), config).program
    if program.opset_imports[""] != opset:  # torch writes an older one where it cannot convert to it
        raise ModelError(f"torch's exporter cannot write opset {opset}; give a lower one with --opset or --int8_opset")
    return program


def name_after_modules(graph: Any) -> None:
    """Name the nodes with a matrix of weights as the modules that they were traced in, where the trace says so."""
    used = Counter[str]()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        matrix = any(rank(value) == 2 for value in node.inputs if is_constant(value))
        if node.op_type not in MATRIX_OPS or not matrix or len(scopes) < 2 or not scopes[-2]:
            continue
        module = str(scopes[-2])
        used[module] += 1
        node.name = module if used[module] == 1 else f"{module}{AGAIN}{used[module]}"


def _keep_sums_apart(graph: Any) -> None:
    """Write sums before a layer norm as `Sum`, which ONNX Runtime does not merge with it.

    What it makes of `Add` and a layer norm on a CPU, SkipLayerNormalization, takes three times as long as both.
    """
    for node in graph:
        if node.op_type == "Add" and any(user.op_type == "LayerNormalization" for user in node.outputs[0].consumers()):
            node.op_type = "Sum"


def _leave_heads_together(graph: Any) -> None:
    """Drop pairs of reshapes that part the states of heads and put them together again, beside `Attention`."""
    for node in [node for node in graph if node.op_type == "Reshape"]:
        parted = node.inputs[0].producer()
        if parted is None or parted.op_type != "Reshape":
            continue
        before, after = parted.inputs[0].shape, node.outputs[0].shape
        if before is not None and before == after and len(before) == 3 and not before.has_unknown_dim():
            node.outputs[0].replace_all_uses_with(parted.inputs[0])


def _write_shared_weights_once(graph: Any) -> None:
    """Merge equal matrices: layers that share theirs, as ALBERT's do, were each given a transposed copy."""
    kept: dict[tuple[Any, ...], Any] = {}
    for name, value in list(graph.initializers.items()):
        weights = value.const_value
        if weights is None or len(weights.shape) != 2:
            continue
        first = kept.setdefault((weights.dtype, tuple(weights.shape), sha256(weights.tobytes()).digest()), value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[name]


def save_onnx(program: Any, file: Path) -> None:
    """Write an `onnx_ir.Model`, its weights inside unless they are too many for one file."""
    import onnx_ir  # noqa: PLC0415 - an extra

    weights = sum(v.const_value.nbytes for v in program.graph.initializers.values() if v.const_value is not None)
    external = f"{file.name}_data" if weights >= EXTERNAL_DATA_FROM else None
    onnx_ir.save(program, str(file), external_data=external)


def copy_onnx(source: Path, target: Path) -> None:
    """Write an ONNX graph once more, with weights that stand beside it in a file that is named as the copy is."""
    import onnx_ir  # noqa: PLC0415 - an extra

    save_onnx(onnx_ir.load(str(source)), target)


def drop_padding_of(source: Path, target: Path) -> None:
    """Write an ONNX graph that computes no padding, where its form allows that (see `padding.drop_padding`).

    Shapes then follow from the inputs' values, not from their shapes alone, as compilers for accelerators want them.
    """
    import onnx_ir  # noqa: PLC0415 - an extra

    program = onnx_ir.load(str(source))
    drop_padding(program.graph)
    save_onnx(program, target)


def openvino_opset(model: nn.Module) -> int:
    """Return the operator set of the graph that OpenVINO reads: with attention as one operator, where it can be that.

    Elsewhere it is what torch's exporter writes without a conversion. Of 20 OpenVINO overlooks the axis of a Fourier
    transform, which is FNet's in the place of attention, without a word (openvino 2026.4).
    """
    return OPERATOR_FROM if uses_plain_sdpa(getattr(model, "transformer", model)) else 18


def read_openvino(source: Path) -> Any:
    """Return an ONNX graph as an `openvino.Model`; raises ModelError where OpenVINO does not know an operator."""
    import openvino  # noqa: PLC0415 - an extra

    with foreign_code("OpenVINO cannot read this architecture's graph", _ADVICE):
        return openvino.convert_model(str(source))


def _traced(model: nn.Module, kind: str) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    name = type(getattr(model, "transformer", model)).__name__
    return foreign_code(f"{name} cannot be written as {kind}", _ADVICE)


def _shapes(input_names: Sequence[str]) -> dict[str, dict[int, Any]]:
    return {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in input_names}


def _sample(model: nn.Module, input_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Two rows of eight tokens, the second one padded: sizes of 1 would be taken for constants."""
    values = {"input_ids": torch.full((2, 8), 1), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    values["token_type_ids"] = torch.zeros(2, 8, dtype=torch.long)
    values["attention_mask"][1, 6:] = 0
    return {name: values[name] for name in input_names}


def half_onnx(source: Path, target: Path) -> None:
    """Write an ONNX graph with weights and products in float16; inputs and logits stay as they are.

    It is for GPUs, where sums are better merged with the layer norms behind them.
    """
    import onnx  # noqa: PLC0415 - an extra
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    graph = onnx.load(str(source))
    for node in graph.graph.node:
        if node.op_type == "Sum" and len(node.input) == 2:
            node.op_type = "Add"
    onnx.save(convert_float_to_float16(graph, keep_io_types=True), str(target))


def save_openvino(model: Any, file: Path, *, half: bool) -> None:
    """Write an `openvino.Model`, its weights in float16 on demand; they are computed with in float32 all the same."""
    import openvino  # noqa: PLC0415 - an extra

    openvino.save_model(model, str(file), compress_to_fp16=half)
