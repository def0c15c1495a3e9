"""Which files an export has: names under which other programs look for them.

`onnx/model.onnx` is what text-embeddings-inference and optimum's `ORTModelFor...` open; transformers.js asks for a
suffix by dtype: "fp16", "q8" for `_quantized`, "int8" for `_int8`. `openvino/` is where `OVModelFor...` looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinybert_ds.export.runtimes import Format

_ONNX = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "int8 dynamic": "onnx/model_quantized.onnx",
    "int8 static": "onnx/model_int8.onnx",
}
_OPENVINO = {
    "fp32": "openvino/openvino_model.xml",
    "fp16": "openvino/openvino_model_fp16.xml",
    "int8 static": "openvino/openvino_model_qint8_quantized.xml",
}


class Export(NamedTuple):
    """A file that is asked for."""

    kind: Format
    precision: str  # fp32, fp16, int8 dynamic, int8 static
    file: str  # below the output directory

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{'ONNX' if self.kind == 'onnx' else 'OpenVINO'} {self.precision}"


def wanted(formats: Sequence[Format], precisions: Sequence[str], scales: Sequence[str]) -> list[Export]:
    """Return the files that a command line asks for, each once, float before int8."""
    found = []
    for kind in dict.fromkeys(formats):
        names = _ONNX if kind == "onnx" else _OPENVINO
        kept = [precision for precision in ("fp32", "fp16") if precision in precisions]
        if "int8" in precisions:
            kept += [f"int8 {scale}" for scale in (dict.fromkeys(scales) if kind == "onnx" else ("static",))]
        found += [Export(kind, precision, names[precision]) for precision in kept]
    return found


def bytes_of(file: Path) -> int:
    """Return the size of an export with the weights that lie beside it."""
    beside = [file.with_name(f"{file.name}_data"), file.with_suffix(".bin")]
    return sum(path.stat().st_size for path in (file, *beside) if path.is_file())
