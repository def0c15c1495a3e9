"""A fine-tuned model or a sentence encoder as files for other runtimes: written, measured beside the model, and only
then put in place."""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.data.tasks import find_task
from tinybert_ds.errors import DataError, raise_all
from tinybert_ds.export.files import Export, bytes_of, wanted
from tinybert_ds.export.measure import as_model, feed_of, judge, torch_model
from tinybert_ds.export.peak_memory import peak_mib
from tinybert_ds.export.place import may_take_export, put_in_place, scratch_inside
from tinybert_ds.export.record import REPORT_FILE, TABLE_FILE, Row, failures, render, report_of
from tinybert_ds.export.runtimes import PACKAGES, missing_packages, old_packages, package_version
from tinybert_ds.files import is_text, write_atomically
from tinybert_ds.models.card import Card, Figure, figures_table, has_own_card, read_base_model, write_card
from tinybert_ds.models.hub import require_repository, upload
from tinybert_ds.models.labels import output_names
from tinybert_ds.models.run_card import MADE, run_card, standard_error
from tinybert_ds.models.saving import save_tokenizer
from tinybert_ds.models.sentence.directory import write_modules
from tinybert_ds.stages.compare import LATENCY_BATCHES, ROUNDS, Candidate, cpu_name, measure_latency_ms
from tinybert_ds.stages.export_files import open_export, write_files
from tinybert_ds.stages.export_subject import Subject, load_subject
from tinybert_ds.stages.export_vectors import is_sentence_encoder, load_vector_subject
from tinybert_ds.stages.start import join
from tinybert_ds.stages.task_settings import write_settings
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets import target_of

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(ExportModelArguments, argv)
    raise_all([*problems, *path_problems(arguments)])
    world = join("info")
    if arguments.push_to_hub:
        require_repository(arguments.push_to_hub)
    threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    spec = find_task(arguments.task_name, arguments.task_file) if arguments.data_dir else None
    load: Callable[..., Subject] = partial(load_subject, spec=spec)
    if is_sentence_encoder(arguments):
        load = load_vector_subject
    exports = wanted(arguments.format, arguments.precision, arguments.int8)
    output_dir = Path(arguments.output_dir)
    with scratch_inside(output_dir) as scratch:
        subject = load(arguments.model, arguments=arguments, world=world, role="model")
        teacher = None
        if arguments.teacher:
            teacher = load(arguments.teacher, arguments=arguments, world=world, role="teacher")
        in_float = write_files(subject, exports, scratch / "model", arguments, threads, choose=True)
        subjects = [(subject, scratch / "model", in_float)]
        if teacher is not None:
            write_files(teacher, exports, scratch / "teacher", arguments, threads, choose=False)
            subjects.append((teacher, scratch / "teacher", {}))
        rows = measure(subjects, exports, threads)
        report = report_of(rows, _about(subject, arguments, threads))
        print(render(report))
        lost = failures(rows, report["about"], arguments.max_loss)
        raise_all([f"{problem}; leave it out, or allow more (nothing was written)" for problem in lost], DataError)
        _gather(scratch / "model", scratch / "whole", subject)
        write_atomically(scratch / "whole" / TABLE_FILE, render(report))
        write_atomically(scratch / "whole" / REPORT_FILE, json.dumps(report, indent=2) + "\n")
        if not has_own_card(output_dir):
            write_card(scratch / "whole", _card(subject, rows, report, arguments))
        put_in_place(scratch / "whole", output_dir)
    logger.info("exported: %s", output_dir)
    if arguments.push_to_hub:
        upload(output_dir, arguments.push_to_hub)
        logger.info("uploaded to %s", arguments.push_to_hub)


def path_problems(arguments: ExportModelArguments) -> Iterator[str]:
    """Yield what is wrong with the paths and the installed packages, before any work."""
    for name in ("model", "teacher", "data_dir"):
        path = getattr(arguments, name)
        if path is not None and not Path(path).is_dir():
            yield f"--{name}: {path} is not a directory; give an existing one"
    missing = missing_packages(arguments.format)
    if missing:
        yield (
            f"--format {' '.join(arguments.format)}: {', '.join(missing)} not installed; `bash launchers/install.sh "
            f"export` in the checkout, or pip install {' '.join(missing)}"
        )
    elif find_spec("transformers.exporters") is None:
        yield f"transformers {package_version('transformers')} has no exporters; install transformers>=5.24"
    elif old := old_packages(arguments.format):
        yield f"--format {' '.join(arguments.format)}: {'; '.join(old)}: `bash launchers/install.sh export`, or pip"
    output_dir = Path(arguments.output_dir)
    if not is_text(output_dir.absolute()):
        yield f"--output_dir: {output_dir} holds bytes that are no text, which the runtimes cannot open; rename it"
    elif output_dir.exists() and not output_dir.is_dir():
        yield f"--output_dir: {output_dir} is a file; give a directory"
    elif output_dir.is_dir() and not may_take_export(output_dir):
        yield (
            f"--output_dir: {output_dir} holds files that are no export of this program; give an empty or new "
            "directory (nothing was changed)"
        )


def measure(
    subjects: Sequence[tuple[Subject, Path, dict[str, Sequence[str]]]], exports: Sequence[Export], threads: int
) -> list[Row]:
    """Return what each file of each subject is worth, beside the subject in torch.

    Args:
        subjects: Each with the directory of its files, and by file the layers that stayed in float.
    """
    rows, candidates = [], []
    for subject, folder, in_float in subjects:
        models: dict[str, Any] = {"torch fp32": torch_model(subject.model, subject.input_names)}
        for export in exports:
            run = open_export(export.kind, folder / export.file, threads)
            models[export.name] = as_model(run, subject.input_names)
        reference = subject.logits(models["torch fp32"])
        settings = subject.settle(reference)
        own = subject.metric(reference, settings)
        feed = feed_of(subject.batch(np.arange(min(max(LATENCY_BATCHES), len(subject.rows)))), subject.input_names)
        in_torch = folder / "torch"  # as transformers loads it, which knows no published or old layout
        subject.transformer.save_pretrained(in_torch)
        rows.append(
            Row(
                model=subject.name,
                name="torch fp32",
                kind="torch",
                precision="fp32",
                file="",
                bytes=subject.size_bytes,
                metric=own,
                loss=None,
                largest_difference=None,
                agreement=None,
                latency_ms={},
                peak_mib=peak_mib("torch", in_torch, feed, threads),
            )
        )
        for export in exports:
            found = subject.logits(models[export.name])
            agreement = subject.agreement(found, reference)
            quality = judge(found, reference, subject.metric(found, settings), own, agreement)
            rows.append(
                Row(
                    model=subject.name,
                    name=export.name,
                    kind=export.kind,
                    precision=export.precision,
                    file=export.file,
                    bytes=bytes_of(folder / export.file),
                    **vars(quality),
                    latency_ms={},
                    peak_mib=peak_mib(export.kind, folder / export.file, feed, threads),
                    in_float=in_float.get(export.file, ()),
                )
            )
        candidates += [Candidate(f"{subject.name}/{n}", m, subject.rows, subject.layout) for n, m in models.items()]
    return _with_latencies(rows, candidates)


def _with_latencies(rows: Sequence[Row], candidates: Sequence[Candidate]) -> list[Row]:
    found = {size: measure_latency_ms(candidates, size, batches, ROUNDS) for size, batches in LATENCY_BATCHES.items()}
    return [
        replace(row, latency_ms={str(size): times[f"{row.model}/{row.name}"] for size, times in found.items()})
        for row in rows
    ]


def _about(subject: Subject, arguments: ExportModelArguments, threads: int) -> dict[str, Any]:
    packages = ["torch", "transformers", *(name for kind in arguments.format for name in PACKAGES[kind])]
    versions = {name: package_version(name) for name in packages}
    batches = " and ".join(f"{count} batches of {size}" for size, count in LATENCY_BATCHES.items())
    onnx = "onnx" in arguments.format
    wide = arguments.opset if onnx and {*arguments.precision} - {"int8"} else None
    narrow = arguments.int8_opset if onnx and "int8" in arguments.precision else None
    opsets = ", ".join(f"{opset} in {of}" for opset, of in ((wide, "fp32 and fp16"), (narrow, "int8")) if opset)
    return {
        "task": subject.spec.name if subject.spec else None,
        "split": subject.split,
        "rows": len(subject.rows),
        "measured_on": subject.measured_on,
        "metric": subject.metric_name,
        "agreement": subject.agreement_name,
        "opset": wide,
        "int8_opset": narrow,
        "threads": threads,
        "versions": versions,
        "conditions": [
            f"Measured on {cpu_name()}, {os.cpu_count()} cores, {threads} threads for each runtime, "
            f"{platform.system()}, Python {platform.python_version()}, "
            f"{', '.join(f'{name} {value}' for name, value in versions.items())}.",
            "Latencies: one forward without tokenisation, batches of real rows padded to their longest, all models in "
            f"turn in one process, each {ROUNDS} times, median of rounds of {batches}; waiting threads sleep. Peak "
            "memory: a process of its own that loads the file and runs one batch."
            + (f" ONNX opset {opsets}." if onnx else ""),
        ],
    }


def _card(subject: Subject, rows: Sequence[Row], report: dict[str, Any], arguments: ExportModelArguments) -> Card:
    own = [row for row in rows if row.model == subject.name and row.file]
    figures = list(_figures(subject, own))
    files = "\n".join(f"- `{row.file}`: {row.name}, {row.bytes / 2**20:.1f} MiB" for row in own)
    table = render(report).partition("\n")[2]
    made = run_card(subject.directory, {}) if (subject.directory / "run.json").is_file() else None
    sections = made.sections if made else {}
    return Card(
        name=Path(arguments.output_dir).resolve().name,
        pipeline_tag=_offer(subject),
        license=arguments.license,
        language=arguments.languages,
        datasets=arguments.datasets,
        base_model=read_base_model(subject.directory) or (made.base_model if made else ()),
        library_name="optimum" if subject.modules is None else "sentence-transformers",
        figures=figures,
        sections={
            "What it is": f"The model `{subject.name}` for other runtimes, exported by TinyBERT-DS.\n\n{files}",
            **{heading: text for heading, text in sections.items() if heading in MADE},
            "Evaluation": f"{figures_table(figures)}\n{table}" if figures else table,
            "What it is not for": "Anything that the model it was made of is not for, and texts on which it was not "
            "measured in 8 bits: other languages, other lengths, other kinds than those of the split above.",
        },
    )


def _figures(subject: Subject, rows: Sequence[Row]) -> Iterator[Figure]:
    """The official metric of each file, where there is one."""
    metric, count = subject.metric_name, len(subject.rows)
    for row in rows:
        if row.metric is None or metric is None:
            return
        if subject.pairs is not None:
            count, name = len(subject.pairs.scores), subject.pairs.name
            error = standard_error(metric, row.metric, count)
            yield Figure(metric, row.metric, name, "STS file", count, error, row.file, of_datasets=False)
        else:
            assert subject.spec is not None
            error = standard_error(metric, row.metric, count)
            yield Figure(metric, row.metric, subject.spec.name, subject.split, count, error, row.file)


def _offer(subject: Subject) -> str:
    """What the hub calls that which a model does."""
    if subject.answers == "score" and subject.rows.groups is not None:
        return "text-ranking"
    offers = {"tokens": "token-classification", "spans": "question-answering", "vectors": "sentence-similarity"}
    return offers.get(subject.answers, "text-classification")


def _gather(written: Path, folder: Path, subject: Subject) -> None:
    """Gather in a folder the files of the formats, config and tokeniser, and what a sentence encoder's modules are."""
    folder.mkdir()
    for name in ("onnx", "openvino"):
        if (written / name).is_dir():
            os.replace(written / name, folder / name)
    config = copy.deepcopy(subject.transformer.config)
    config.architectures = [type(subject.transformer).__name__]  # text-embeddings-inference looks there what it is for
    config.save_pretrained(folder)
    if subject.modules is None:
        name_outputs(folder / "config.json", config)
    else:
        write_modules(folder, subject.modules, config.hidden_size)
    if subject.spec is not None and subject.settings is None and target_of(subject.spec).setting_names:
        settings = subject.settle(subject.logits(torch_model(subject.model, subject.input_names)))
        write_settings(folder, settings, subject.columns)
    save_tokenizer(subject.tokenizer, folder, with_types="token_type_ids" in subject.input_names)


def name_outputs(file: Path, config: Any) -> None:
    """Name the outputs of a model in its config.json: transformers leaves out names that nobody gave them, without
    which text-embeddings-inference does not start."""
    names = output_names(config)
    content = parse_json(file.read_bytes())
    content["id2label"] = {str(number): name for number, name in enumerate(names)}
    content["label2id"] = {name: number for number, name in enumerate(names)}
    write_atomically(file, json.dumps(content, indent=2, sort_keys=True) + "\n")
