"""Writing the files of an export: float first, then 8 bits with the layers that measurement leaves in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.data.task_batches import EncodedExamples
from tinybert_ds.export.choice import choose_layers
from tinybert_ds.export.convert import (
    copy_onnx,
    drop_padding_of,
    export_onnx,
    half_onnx,
    openvino_opset,
    read_openvino,
    save_openvino,
)
from tinybert_ds.export.files import Export
from tinybert_ds.export.measure import as_model, torch_model
from tinybert_ds.export.quantise import layers_of, openvino_layers, quantise_onnx, quantise_openvino
from tinybert_ds.export.runtimes import Format, Run, open_file
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.stages.export_subject import Subject, some_rows

logger = logging.getLogger(__name__)

FLIPS = 2
"""Decisions that may change on training rows, for each that the metric may lose: they change to the better as well."""
_CHOOSING = 2
"""Rows that choose the layers in float, for each row of calibration."""


def write_files(
    subject: Subject,
    exports: Sequence[Export],
    folder: Path,
    arguments: ExportModelArguments,
    threads: int,
    *,
    choose: bool,
) -> dict[str, Sequence[str]]:
    """Write the files of a model.

    Args:
        choose: Whether layers that lose too much in 8 bits stay in float.

    Returns:
        By file the layers that stayed in float; of files in 8 bits alone.
    """
    calibration, choosing = _training_rows(subject, arguments.calibration_rows)
    found: dict[str, Sequence[str]] = {}
    graphs = _Graphs(subject, folder, keep_padding=arguments.keep_padding)
    for kind in dict.fromkeys(export.kind for export in exports):
        write: _OnnxWriter | _OpenVinoWriter
        write = _OnnxWriter(graphs, arguments) if kind == "onnx" else _OpenVinoWriter(graphs)
        for export in (export for export in exports if export.kind == kind):
            target = folder / export.file
            target.parent.mkdir(parents=True, exist_ok=True)
            logger.info("%s: writing %s", subject.name, export.name)
            if not export.precision.startswith("int8"):
                write.whole(target, export.precision)
                continue
            assert calibration is not None
            assert choosing is not None
            scales = export.precision.removeprefix("int8 ")
            quantise = partial(write.quantised, target, scales, calibration)
            if not choose:
                quantise(())
                continue
            found[export.file] = _choose(
                subject, export, target, write.layers(), quantise, choosing, arguments, threads
            )
    return found


def open_export(kind: Format, file: Path, threads: int) -> Run:
    """Load a file that was just written; raises ModelError where its runtime refuses it."""
    with foreign_code(
        f"{file.name} cannot be opened by the installed runtime",
        "give a lower --opset or --int8_opset, or leave the format or precision out",
    ):
        return open_file(kind, file, threads)


def _choose(
    subject: Subject,
    export: Export,
    target: Path,
    layers: Sequence[str],
    quantise: Any,
    rows: EncodedExamples,
    arguments: ExportModelArguments,
    threads: int,
) -> Sequence[str]:
    """Write a file in 8 bits whose decisions on training rows are those of the model; return its layers in float."""
    reference = subject.logits(torch_model(subject.model, subject.input_names), rows)
    written: frozenset[str] | None = None

    def loss(in_float: frozenset[str]) -> float:
        nonlocal written
        quantise(in_float)
        written = in_float
        run = open_export(export.kind, target, threads)
        return 1 - subject.agreement(subject.logits(as_model(run, subject.input_names), rows), reference, rows)

    choice = choose_layers(layers, loss, (FLIPS if subject.spec else 1) * arguments.max_loss)
    if written != frozenset(choice.in_float):
        quantise(choice.in_float)
    logger.info(
        "%s: %s lacks %.2f%% of %s, %d training rows%s",
        subject.name,
        export.name,
        100 * choice.loss,
        subject.agreement_name,
        len(rows),
        f", {', '.join(choice.in_float)} in float ({100 * choice.loss_of_all:.2f}% without)" if choice.in_float else "",
    )
    return choice.in_float


def _training_rows(subject: Subject, count: int) -> tuple[Any, EncodedExamples | None]:
    """Rows that fix scales, as batches, and others that choose layers, from the training rows."""
    rows = subject.training_rows
    if rows is None:
        return None, None
    order = np.random.default_rng(0).permutation(len(rows))
    first, others = order[:count], order[count : (1 + _CHOOSING) * count]
    return subject.feeds(some_rows(rows, first)), some_rows(rows, others if len(others) else first)


class _Graphs:
    """A model as ONNX graphs in float32, each made once, in files that all others are made of."""

    def __init__(self, subject: Subject, folder: Path, *, keep_padding: bool) -> None:
        self._subject, self._folder, self._keep_padding = subject, folder, keep_padding

    def with_padding(self, opset: int) -> Path:
        """Return the file of the graph that computes padding."""
        file = self._folder / f"opset_{opset}" / "model.onnx"
        if not file.exists():
            file.parent.mkdir(parents=True)
            export_onnx(self._subject.model, self._subject.input_names, file, opset=opset)
        return file

    def for_cpus(self, opset: int) -> Path:
        """Return the file of the graph that computes no padding, unless that is kept."""
        if self._keep_padding:
            return self.with_padding(opset)
        file = self._folder / f"opset_{opset}_no_padding" / "model.onnx"
        if not file.exists():
            source = self.with_padding(opset)
            file.parent.mkdir(parents=True)
            drop_padding_of(source, file)
        return file

    def for_openvino(self) -> Path:
        """Return the file of the graph that OpenVINO reads."""
        return self.with_padding(openvino_opset(self._subject.model))


class _OnnxWriter:
    """ONNX files."""

    def __init__(self, graphs: _Graphs, arguments: ExportModelArguments) -> None:
        self._graphs, self._arguments = graphs, arguments

    def whole(self, target: Path, precision: str) -> None:
        if precision == "fp16":
            half_onnx(self._graphs.with_padding(self._arguments.opset), target)
            return
        copy_onnx(self._graphs.for_cpus(self._arguments.opset), target)

    def layers(self) -> list[str]:
        return list(layers_of(self._graphs.for_cpus(self._arguments.int8_opset)))

    def quantised(self, target: Path, scales: Any, calibration: Any, in_float: Any) -> None:
        graph = self._graphs.for_cpus(self._arguments.int8_opset)
        quantise_onnx(graph, target, scales=scales, calibration=calibration, in_float=in_float)


class _OpenVinoWriter:
    """OpenVINO files. Padding stays: OpenVINO prepares itself anew for each number of tokens that it meets."""

    def __init__(self, graphs: _Graphs) -> None:
        self._model = read_openvino(graphs.for_openvino())

    def whole(self, target: Path, precision: str) -> None:
        save_openvino(self._model, target, half=precision == "fp16")

    def layers(self) -> list[str]:
        return list(openvino_layers(self._model))

    def quantised(self, target: Path, scales: Any, calibration: Any, in_float: Any) -> None:
        save_openvino(quantise_openvino(self._model, calibration, in_float), target, half=False)
