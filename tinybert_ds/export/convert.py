"""From a model to graphs of other runtimes, by the exporters of transformers, which trace it with torch.export.

Batch and length are dynamic in every graph; inputs are what the tokeniser gives, the output is "logits" (B, C).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tinybert_ds.models.foreign import foreign_code

DYNAMIC_AXES = ("batch_size", "sequence_length")
EXTERNAL_DATA_FROM = 2**30
"""Bytes of weights from which on they stand in a file beside an ONNX graph, which cannot grow beyond two of these."""

_ADVICE = "this architecture cannot be exported by the installed transformers and torch; leave the format out"


def export_onnx(model: PreTrainedModel, input_names: Sequence[str], file: Path, *, opset: int) -> None:
    """Write a model as an ONNX graph in float32.

    Args:
        input_names: Of the tokeniser's outputs that the model takes.
        opset: Version of ONNX's operators.

    Raises:
        ModelError: The architecture cannot be traced.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter  # noqa: PLC0415 - an extra

    with _traced(model, "ONNX"):
        config = OnnxConfig(dynamic=True, dynamic_shapes=_shapes(input_names), opset_version=opset)
        graph = OnnxExporter().export(model, _sample(model, input_names), config).program
    save_onnx(graph, file)


def save_onnx(graph: Any, file: Path) -> None:
    """Write an `onnx_ir.Model`, its weights inside unless they are too many for one file."""
    import onnx_ir  # noqa: PLC0415 - an extra

    weights = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    external = f"{file.name}_data" if weights >= EXTERNAL_DATA_FROM else None
    onnx_ir.save(graph, str(file), external_data=external)


def export_openvino(model: PreTrainedModel, input_names: Sequence[str]) -> Any:
    """Return a model as an `openvino.Model` in float32; raises ModelError as `export_onnx`."""
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter  # noqa: PLC0415 - an extra

    with _traced(model, "OpenVINO"):
        config = OpenVINOConfig(dynamic=True, dynamic_shapes=_shapes(input_names))
        return OpenVINOExporter().export(model, _sample(model, input_names), config).program


def _traced(model: PreTrainedModel, kind: str) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    return foreign_code(f"{type(model).__name__} cannot be written as {kind}", _ADVICE)


def _shapes(input_names: Sequence[str]) -> dict[str, dict[int, Any]]:
    return {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in input_names}


def _sample(model: PreTrainedModel, input_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Two rows of eight tokens, the second one padded: sizes of 1 would be taken for constants."""
    values = {"input_ids": torch.full((2, 8), 1), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    values["token_type_ids"] = torch.zeros(2, 8, dtype=torch.long)
    values["attention_mask"][1, 6:] = 0
    return {name: values[name] for name in input_names}


def half_onnx(source: Path, target: Path) -> None:
    """Write an ONNX graph with weights and products in float16; inputs and logits stay as they are."""
    import onnx  # noqa: PLC0415 - an extra
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415

    onnx.save(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))


def save_openvino(model: Any, file: Path, *, half: bool) -> None:
    """Write an `openvino.Model`, its weights in float16 on demand; they are computed with in float32 all the same."""
    import openvino  # noqa: PLC0415 - an extra

    openvino.save_model(model, str(file), compress_to_fp16=half)
