"""Running exported files with the runtimes that they are for. No torch: a server has none, and its memory is measured.

B batch rows, S sequence length, C outputs, V width of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.versions import installed_version, is_importable, requirements

Format = Literal["onnx", "openvino"]
Feed = Mapping[str, NDArray[np.int64]]
"""(B, S) integers by the names that the tokeniser gives them."""
Run = Callable[[Feed], NDArray[np.float32]]
"""From a feed to logits (B, C), of a model that answers for each token (B, S, C), or to vectors (B, V). Where a span
begins and ends are two logits of each token."""

LOGITS = "logits"
VECTORS = "sentence_embedding"
"""Of a sentence encoder; sentence-transformers, optimum and transformers.js know this name."""
START_AND_END = ("start_logits", "end_logits")
"""Of a model that answers with spans, (B, S) each."""
STATES = "last_hidden_state"
"""Of a sentence encoder too, for loaders that pool by themselves."""
PACKAGES: Mapping[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino", "nncf"),
}
"""What writes and runs a format."""


def missing_packages(formats: Sequence[Format]) -> list[str]:
    """Return the packages that the formats need and that cannot be imported."""
    return [name for name in _packages(formats) if not is_importable(name)]


def old_packages(formats: Sequence[Format]) -> list[str]:
    """Return the packages that the formats need and that are older than needed, each in words."""
    needed = {requirement.name: requirement.specifier for requirement in requirements("export")}
    names = [name for name in _packages(formats) if name in needed]
    found = {name: version for name in names if (version := package_version(name)) is not None}
    return [
        f"{name} is {version}, needed is {name}{needed[name]}"
        for name, version in found.items()
        if not needed[name].contains(version, prereleases=True)
    ]


def _packages(formats: Sequence[Format]) -> list[str]:
    return list(dict.fromkeys(name for kind in formats for name in PACKAGES[kind]))


def package_version(name: str) -> str | None:
    """Return the version of a package by the name that it is imported by, None where nothing says it."""
    distributions = [name] if installed_version(name) else packages_distributions().get(name, [])
    return installed_version(distributions[0]) if distributions else None


def open_file(kind: Format, file: Path, threads: int) -> Run:
    """Load an exported file on the CPU with its own runtime."""
    return _open_onnx(file, threads) if kind == "onnx" else _open_openvino(file, threads)


def _open_onnx(file: Path, threads: int) -> Run:
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Waiting threads sleep: in a process with other models they would take its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    answers = _answers({value.name for value in session.get_outputs()})

    def run(feed: Feed) -> NDArray[np.float32]:
        return _together(session.run(list(answers), {name: feed[name] for name in names}))

    return run


def _open_openvino(file: Path, threads: int) -> Run:
    settings = {
        # Its default is bfloat16 where the CPU multiplies that: a file in float32 should say the same on every machine.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    model = _openvino_core().compile_model(str(file), "CPU", settings)
    names = [port.get_any_name() for port in model.inputs]
    answers = _answers({name for port in model.outputs for name in port.get_names()})
    request = model.create_infer_request()

    def run(feed: Feed) -> NDArray[np.float32]:
        found = request.infer({name: feed[name] for name in names}, share_inputs=True)
        return _together([np.array(found[answer]) for answer in answers])

    return run


@cache
def _openvino_core() -> Any:
    """OpenVINO's core, one for the process and as long as it lives.

    On CPUs with AMX each puts a stack for signals in the place of the one before: of several that come and go the last
    leaves one that is gone, and the next signal would end the process with a segmentation fault (openvino 2026.4).
    """
    import openvino  # noqa: PLC0415 - an extra

    return openvino.Core()


def _answers(outputs: Collection[str]) -> tuple[str, ...]:
    """The outputs that a model is for."""
    if VECTORS in outputs:
        return (VECTORS,)
    return START_AND_END if {*START_AND_END} <= {*outputs} else (LOGITS,)


def _together(answers: Sequence[Any]) -> NDArray[np.float32]:
    """One array of what a model's outputs are, several side by side along a last axis."""
    return np.asarray(answers[0]) if len(answers) == 1 else np.stack(answers, axis=-1)
