"""How much smaller, faster and worse (or not) a student is than its teacher: one measurement, one table.

Every figure of the table is measured here, in one process: metrics on a split that training has not seen, latencies of
all models in turn on the same sentences, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.compare import CompareArguments
from tinybert_ds.command_line import seconds_since_start
from tinybert_ds.data.batching import INFINITE_COUNTS, RowLayout, collate
from tinybert_ds.data.metrics import official_metric, official_metric_name
from tinybert_ds.data.task_batches import EncodedExamples, take_rows
from tinybert_ds.data.task_files import Examples, read_split, split_files
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError, raise_all
from tinybert_ds.export.measure import as_model
from tinybert_ds.export.record import is_export, read_export
from tinybert_ds.export.runtimes import open_file
from tinybert_ds.files import write_atomically
from tinybert_ds.hardware import wait_for
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.pretrained import Role, read_config, weights_bytes
from tinybert_ds.models.student import count_parameters
from tinybert_ds.records import STAGES, read_record
from tinybert_ds.stages.evaluate import load_fine_tuned
from tinybert_ds.stages.export_subject import input_names
from tinybert_ds.stages.start import join
from tinybert_ds.stages.task_data import RowFlags, load_task
from tinybert_ds.stages.task_settings import read_settings
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets import target_of
from tinybert_ds.types import Batch, move

LATENCY_BATCHES = {1: 32, 32: 3}
"""Batch size -> how many different batches of real sentences are timed in each round."""

ROUNDS = 5
OWN_STAGE = "compare_models"
TITLE = "# The student beside its teacher"


class Candidate(NamedTuple):
    """A model that takes part, and the split as its tokeniser and its config see it."""

    name: str
    module: Any  # from a batch to its terms, the logits among them
    encoded: EncodedExamples
    layout: RowLayout
    parameters: int = 0  # 0: as many as the module has
    size_bytes: int = 0  # on the disk
    device: torch.device = torch.device("cpu")  # which computes it

    def batch(self, rows: np.ndarray) -> Batch:
        """Return the rows as one batch, padded to its longest."""
        taken = take_rows(self.encoded, rows)
        batch = collate(taken, int(taken.lengths.max()), self.layout, INFINITE_COUNTS)._replace(labels=None)
        return move(batch, self.device)


def measure_metric(
    name: str, directory: Path, spec: TaskSpec, arguments: CompareArguments, world: World
) -> tuple[Candidate, float]:
    """Return a fine-tuned model and its official metric on the split.

    Raises:
        DataError: The split has no labels.
        ModelError: The directory holds no classifier for this task.
    """
    split = arguments.split
    role: Role = "teacher" if name == "teacher" else "student"
    tokenizer, config = load_tokenizer(directory, None), read_config(directory, role=role)
    flags = RowFlags(arguments.max_seq_length, allow_unknown=arguments.allow_unknown)
    task = load_task(spec, arguments.data_dir, (split,), tokenizer, config, flags, world, judged=True)
    if task.splits[split].labels is None:
        path = spec.split_path(arguments.data_dir, split)
        raise DataError(f"{path} has no labels to measure against; name a labelled split with --split")
    model = load_fine_tuned(directory, task, role=role)
    metrics = task.evaluate(model.module, split, columns=model.columns, settings=model.settings)
    layout = RowLayout("valid", task.max_seq_length, task.pad_id)
    rows, size = task.splits[split], weights_bytes(directory)
    candidate = Candidate(name, model.module, rows, layout, size_bytes=size, device=world.device)
    return candidate, metrics[task.score]


def measure_exported(
    directory: Path, parameters: int, spec: TaskSpec, arguments: CompareArguments, world: World
) -> list[tuple[Candidate, float]]:
    """Return the files of an exported student of so many parameters, and their official metric on the split."""
    exports = read_export(directory)["exports"]
    tokenizer, config = load_tokenizer(directory, None), read_config(directory, role="student")
    flags = RowFlags(arguments.max_seq_length, allow_unknown=arguments.allow_unknown)
    task = load_task(spec, arguments.data_dir, (arguments.split,), tokenizer, config, flags, world)
    columns = target_of(spec).columns(spec, config, None, role="student")
    settings = read_settings(config, target_of(spec).setting_names, columns, role="student")
    names = input_names(task.token_types)
    layout = RowLayout("valid", task.max_seq_length, task.pad_id)
    found = []
    for row in exports:
        if row["model"] != "teacher" and row["file"]:
            with foreign_code(f"{directory / row['file']} cannot be opened", "export the model again"):
                run = open_file(row["kind"], directory / row["file"], torch.get_num_threads())
            model = as_model(run, names)
            metrics = task.evaluate(model, arguments.split, columns=columns, settings=settings)
            rows, name = task.splits[arguments.split], f"student, {row['name']}"
            candidate = Candidate(name, model, rows, layout, parameters, row["bytes"])
            found.append((candidate, metrics[task.score]))
    return found


@torch.no_grad()
def measure_latency_ms(candidates: Sequence[Candidate], batch_size: int, batches: int, rounds: int) -> dict[str, float]:
    """Return the median time of a forward in milliseconds, by name; the models take turns round by round.

    A model's batches of a round follow each other, as where it is served: after another model's its weights would have
    to come back into the processor's caches first. Batches are on the model's device before the clock starts, and the
    device has finished when it stops.

    Args:
        batch_size: rows of a batch, fewer if the split is smaller.
        batches: different batches; the split starts over when it is used up.
        rounds: times that every batch goes through every model; one round before is not counted.
    """
    rows = len(candidates[0].encoded)
    starts = [number * batch_size for number in range(batches)]
    inputs = [
        {c.name: c.batch(np.arange(start, start + min(batch_size, rows)) % rows) for c in candidates}
        for start in starts
    ]
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for number in tqdm(range(rounds + 1), desc=f"timing batches of {batch_size}", mininterval=1):
        for candidate in candidates:
            for batch in inputs:
                wait_for(candidate.device)
                begin = time.perf_counter()
                candidate.module(batch[candidate.name])
                wait_for(candidate.device)
                seconds = time.perf_counter() - begin
                if number:
                    times[candidate.name].append(1000 * seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def majority_metric(spec: TaskSpec, train: Examples, references: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return what the best answer that never looks at the text gets, see `Target.constant_answer`."""
    assert train.labels is not None
    target = target_of(spec)
    answer = np.asarray(target.constant_answer(train.labels))
    constant = np.broadcast_to(answer, (len(references), *answer.shape))
    return official_metric(spec, target.measure(spec, constant, references, groups))


def build_report(
    candidates: Sequence[Candidate],
    metrics: Mapping[str, float],
    latencies_ms: Mapping[int, Mapping[str, float]],
    majority: float,
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the content of report.json; `candidates` hold a "teacher" and a "student".

    compression is teacher parameters / student parameters; speedup the smallest of the ratios teacher latency / student
    latency over the batch sizes.
    """
    report: dict[str, Any] = {
        candidate.name: {
            "parameters": candidate.parameters or count_parameters(candidate.module.encoder.model),
            "metric": metrics[candidate.name],
            "latency_ms": {str(size): latency[candidate.name] for size, latency in latencies_ms.items()},
            "bytes": candidate.size_bytes,
        }
        for candidate in candidates
    }
    return {
        **report,
        "majority_class": {"metric": majority},
        "compression": report["teacher"]["parameters"] / report["student"]["parameters"],
        "speedup": min(latency["teacher"] / latency["student"] for latency in latencies_ms.values()),
        "stages": [dict(stage) for stage in stages],
    }


def render_report(report: Mapping[str, Any], spec: TaskSpec, split: str, rows: int, gpu: str | None = None) -> str:
    """Return report.md: the table, what it says in words, the time of each stage and the machine."""
    metric = official_metric_name(spec)
    names = [name for name in report if "parameters" in (report[name] if isinstance(report[name], dict) else {})]
    lines = [
        TITLE,
        "",
        f"Task {spec.name}, {split} split, {rows:,} rows.",
        "",
        f"| | parameters | {metric} | " + " | ".join(f"ms, batch of {size}" for size in LATENCY_BATCHES) + " | MiB |",
        "|---|" + "---:|" * (3 + len(LATENCY_BATCHES)),
    ]
    for name in names:
        latencies = " | ".join(f"{value:.2f}" for value in report[name]["latency_ms"].values())
        own = report[name]
        figures = f"{own['parameters']:,} | {own['metric']:.4f} | {latencies} | {own['bytes'] / 2**20:.1f}"
        lines.append(f"| {_words(name)} | {figures} |")
    lines.append(f"| majority class | | {report['majority_class']['metric']:.4f} |" + " |" * (1 + len(LATENCY_BATCHES)))
    lines += ["", *_conclusions(report, names, spec, rows), ""]
    if report["stages"]:
        lines += ["| stage | seconds |", "|---|---:|"]
        lines += [f"| {stage['name']} | {stage['seconds']:.1f} |" for stage in report["stages"]]
        lines += [f"| all | {sum(stage['seconds'] for stage in report['stages']):.1f} |", ""]
    return "\n".join([*lines, *_conditions(gpu), ""])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _conclusions(report: Mapping[str, Any], names: Sequence[str], spec: TaskSpec, rows: int) -> list[str]:
    metric, student = official_metric_name(spec), report["student"]["metric"]
    lines = [
        f"The student has {report['compression']:.2f} times fewer parameters than its teacher and is "
        f"{report['speedup']:.2f} times faster (the smallest of the ratios over the batch sizes)."
    ]
    for name in [name for name in names if name != "student"] + ["majority_class"]:
        difference = student - report[name]["metric"]
        relation = f"{abs(difference):.4f} {'above' if difference > 0 else 'below'}" if difference else "equal to"
        lines.append(f"Its {metric} is {relation} that of the {_words(name)}.")
    if "student_without_distillation" in report and student <= report["student_without_distillation"]["metric"]:
        lines.append(
            "**Distillation did not help here**: the same student trained on the labels alone is as good or better."
        )
    if student <= report["majority_class"]["metric"]:
        lines.append("**The student has learnt nothing**: always giving the commonest answer is as good or better.")
    if spec.official == ("accuracy",):
        error = (student * (1 - student) / rows) ** 0.5
        lines.append(f"The standard error of its accuracy on {rows:,} rows is {error:.4f}.")
    return lines


def _conditions(gpu: str | None) -> list[str]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "deepspeed"))
    on_gpu = f" Models in PyTorch ran on {gpu}, exported files on the CPU." if gpu else ""
    return [
        f"Measured on {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}.{on_gpu}",
        "Latencies: one forward without tokenisation, in fp32 where nothing else is said, batches of real sentences "
        f"padded to their longest, the models in turn in one process, each {ROUNDS} times, median of rounds of "
        + " and ".join(f"{count} batches of {size}" for size, count in LATENCY_BATCHES.items())
        + ".",
    ]


def cpu_name() -> str:
    """Return what the processor calls itself."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def path_problems(arguments: CompareArguments) -> Iterator[str]:
    """Yield what is wrong with the paths that the command line names."""
    directories = ("teacher", "student", "student_before_training", "student_without_distillation", "student_exported")
    for name in (*directories, "data_dir"):
        path = getattr(arguments, name)
        if path is not None and not Path(path).is_dir():
            yield f"--{name}: {path} is not a directory; give an existing one"
    exported = arguments.student_exported
    if exported is not None and Path(exported).is_dir() and not is_export(Path(exported)):
        yield f"--student_exported: {exported} holds no export; give the --output_dir of launchers/export_model.py"
    output_dir = Path(arguments.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        yield f"--output_dir: {output_dir} is a file; give a directory"
    elif foreign := [name for name in ("report.md", "report.json") if _is_foreign(output_dir / name)]:
        yield (
            f"--output_dir: {' and '.join(foreign)} in {output_dir} were not written by this command, which "
            "would replace them; give another directory (nothing was changed)"
        )


def _is_foreign(path: Path) -> bool:
    """Whether there is a report, or anything else of its name, that another command has written."""
    if not os.path.lexists(path):
        return False
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            return not text.startswith(f"{TITLE}\n")
        report = parse_json(text)
    except (OSError, ValueError):
        return True
    return not (isinstance(report, dict) and {"teacher", "student", "compression", "speedup"} <= report.keys())


def read_stages(path: str | Path | None) -> list[dict[str, Any]]:
    """Return the stages of a `--stages_file` without unfinished ones; raises ConfigError if it is no such list."""
    if path is None:
        return []
    remedy = '--stages_file must be a JSON list of {"name": ..., "seconds": ...}'
    return [
        {"name": stage["name"], "seconds": stage["seconds"]}
        for stage in read_record(Path(path), STAGES, remedy, ConfigError)
        if stage.get("finished", True)  # this comparison may itself be a stage that is under way
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(CompareArguments, argv)
    raise_all([*problems, *path_problems(arguments)])
    world = join("info")
    spec = find_task(arguments.task_name, arguments.task_file)
    stages = read_stages(arguments.stages_file)
    train = read_split(spec.without_labels(["train"]), arguments.data_dir, "train")
    directories = {"teacher": arguments.teacher, "student": arguments.student}
    for name in ("student_before_training", "student_without_distillation"):
        if (path := getattr(arguments, name)) is not None:
            directories[name] = path
    measured = [measure_metric(name, Path(path), spec, arguments, world) for name, path in directories.items()]
    if arguments.student_exported is not None:
        parameters = count_parameters(measured[1][0].module.encoder.model)
        measured += measure_exported(Path(arguments.student_exported), parameters, spec, arguments, world)
    candidates = [candidate for candidate, _ in measured]
    latencies_ms = {
        size: measure_latency_ms(candidates, size, batches, ROUNDS) for size, batches in LATENCY_BATCHES.items()
    }
    labels, paths = candidates[0].encoded.gold, split_files(spec, arguments.data_dir, arguments.split)
    assert labels is not None
    references = target_of(spec).gold(spec, arguments.split, paths, labels)
    if train.labels is None:  # they were learned from what a teacher says of them
        train = read_split(spec, arguments.data_dir, arguments.split)
    majority = majority_metric(spec, train, references, candidates[0].encoded.groups)
    own_stage = {"name": OWN_STAGE, "seconds": seconds_since_start()}
    metrics = {candidate.name: metric for candidate, metric in measured}
    report = build_report(candidates, metrics, latencies_ms, majority, [*stages, own_stage] if stages else [])
    report["metric"] = official_metric_name(spec)

    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    gpu = None if world.device.type == "cpu" else torch.cuda.get_device_name(world.device)
    write_atomically(output_dir / "report.md", render_report(report, spec, arguments.split, len(references), gpu))
    write_atomically(output_dir / "report.json", json.dumps(report, indent=2) + "\n")
    print(f"wrote {output_dir / 'report.md'} and report.json")
