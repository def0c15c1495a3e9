"""How much smaller, faster and worse (or not) a student is than its teacher: one measurement, one table.

Every figure of the table is measured here, in one process: metrics on a split that training has not seen, latencies of
all models in turn on the same sentences, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from tinybert_ds.data.batching import INFINITE_COUNTS, RowLayout, collate
from tinybert_ds.data.metrics import compute_metrics, majority_class, official_metric, official_metric_name, predict
from tinybert_ds.data.task_batches import EncodedExamples, encode, take_rows
from tinybert_ds.data.task_files import Examples, read_split
from tinybert_ds.data.tasks import TaskSpec, find_task
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError, raise_all
from tinybert_ds.files import write_atomically
from tinybert_ds.models.capture import takes_token_types
from tinybert_ds.models.labels import match_labels
from tinybert_ds.models.pretrained import Role, load_classifier
from tinybert_ds.models.student import count_parameters

LATENCY_BATCHES = {1: 32, 32: 3}
"""Batch size -> how many different batches of real sentences are timed in each round."""

ROUNDS = 5
EVALUATION_BATCH = 32
OWN_STAGE = "compare_models"
TITLE = "# The student beside its teacher"

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A model that takes part, and the split as its tokeniser and its config see it."""

    name: str
    model: PreTrainedModel
    columns: Sequence[int] | None  # its outputs in the task's order of labels; None for regression
    encoded: EncodedExamples
    layout: RowLayout

    def inputs(self, rows: np.ndarray) -> Inputs:
        """Return the rows as one batch, padded to its longest."""
        taken = take_rows(self.encoded, rows)
        batch = collate(taken, int(taken.lengths.max()), self.layout, INFINITE_COUNTS)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return {**inputs, "token_type_ids": batch.token_type_ids} if takes_token_types(self.model) else inputs


def load_candidate(name: str, directory: Path, spec: TaskSpec, examples: Examples, max_seq_length: int) -> Candidate:
    """Load a fine-tuned model in fp32 and tokenise the split for it.

    Raises:
        ModelError: the directory holds no classifier for this task.
    """
    labels = None if spec.is_regression else spec.label_names
    role: Role = "teacher" if name == "teacher" else "student"
    model = load_classifier(directory, label_names=labels, role=role, head="required")
    columns = None if labels is None else match_labels(model.config, labels, spec.label_aliases, None, role=role)
    tokenizer = load_tokenizer(directory, None)
    layout = RowLayout(
        padding="valid",
        max_seq_length=max_seq_length,
        pad_id=tokenizer.pad_token_id,
        type_vocab_size=getattr(model.config, "type_vocab_size", 0),
    )
    return Candidate(name, model, columns, encode(examples, tokenizer, max_seq_length), layout)


@torch.no_grad()
def measure_metric(candidate: Candidate, spec: TaskSpec, references: np.ndarray) -> float:
    """Return the task's official metric on all rows."""
    order = np.argsort(candidate.encoded.lengths, kind="stable")
    logits = np.zeros((len(order), spec.num_labels), dtype=np.float32)
    for start in tqdm(range(0, len(order), EVALUATION_BATCH), desc=f"evaluating {candidate.name}", mininterval=1):
        rows = order[start : start + EVALUATION_BATCH]
        output = candidate.model(**candidate.inputs(rows)).logits
        logits[rows] = output.numpy() if candidate.columns is None else output.numpy()[:, candidate.columns]
    return official_metric(spec, compute_metrics(spec, predict(spec, logits), references))


@torch.no_grad()
def measure_latency_ms(candidates: Sequence[Candidate], batch_size: int, batches: int, rounds: int) -> dict[str, float]:
    """Return the median time of a forward in milliseconds, by name; the models take turns batch by batch.

    Args:
        candidates: the models; row numbers mean the same sentences in all of them.
        batch_size: rows of a batch, fewer if the split is smaller.
        batches: different batches; the split starts over when it is used up.
        rounds: times that every batch goes through every model; one round before is not counted.
    """
    rows = len(candidates[0].encoded)
    starts = [number * batch_size for number in range(batches)]
    inputs = [
        {c.name: c.inputs(np.arange(start, start + min(batch_size, rows)) % rows) for c in candidates}
        for start in starts
    ]
    times: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for number in tqdm(range(rounds + 1), desc=f"timing batches of {batch_size}", mininterval=1):
        for batch in inputs:
            for candidate in candidates:
                begin = time.perf_counter()
                candidate.model(**batch[candidate.name])
                seconds = time.perf_counter() - begin
                if number:
                    times[candidate.name].append(1000 * seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def majority_metric(spec: TaskSpec, train: Examples, references: np.ndarray) -> float:
    """Return what an answer that never looks at the text gets: the commonest label of train, or its mean score."""
    assert train.labels is not None
    constant = float(train.labels.mean()) if spec.is_regression else majority_class(train.labels)
    return official_metric(spec, compute_metrics(spec, np.full_like(references, constant), references))


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
            "parameters": count_parameters(candidate.model),
            "metric": metrics[candidate.name],
            "latency_ms": {str(size): latency[candidate.name] for size, latency in latencies_ms.items()},
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


def render_report(report: Mapping[str, Any], spec: TaskSpec, split: str, rows: int) -> str:
    """Return report.md: the table, what it says in words, the time of each stage and the machine."""
    metric = official_metric_name(spec)
    names = [name for name in report if "parameters" in (report[name] if isinstance(report[name], dict) else {})]
    lines = [
        TITLE,
        "",
        f"Task {spec.name}, {split} split, {rows:,} rows.",
        "",
        f"| | parameters | {metric} | " + " | ".join(f"ms, batch of {size}" for size in LATENCY_BATCHES) + " |",
        "|---|" + "---:|" * (2 + len(LATENCY_BATCHES)),
    ]
    for name in names:
        latencies = " | ".join(f"{value:.2f}" for value in report[name]["latency_ms"].values())
        lines.append(
            f"| {_words(name)} | {report[name]['parameters']:,} | {report[name]['metric']:.4f} | {latencies} |"
        )
    lines.append(f"| majority class | | {report['majority_class']['metric']:.4f} |" + " |" * len(LATENCY_BATCHES))
    lines += ["", *_conclusions(report, names, spec, rows), ""]
    if report["stages"]:
        lines += ["| stage | seconds |", "|---|---:|"]
        lines += [f"| {stage['name']} | {stage['seconds']:.1f} |" for stage in report["stages"]]
        lines += [f"| all | {sum(stage['seconds'] for stage in report['stages']):.1f} |", ""]
    return "\n".join([*lines, *_conditions(), ""])


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


def _conditions() -> list[str]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "deepspeed"))
    return [
        f"Measured on {_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}.",
        "Latencies: one forward in fp32 without tokenisation, batches of real sentences padded to their longest, the "
        f"models in turn in one process, median of {ROUNDS} rounds of "
        + " and ".join(f"{count} batches of {size}" for size, count in LATENCY_BATCHES.items())
        + ".",
    ]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# --- the command ---


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's values; raises ConfigError with everything that is wrong with them."""
    parser = argparse.ArgumentParser(
        prog="compare_models.py",
        description="Measure a teacher and its student: size, quality, latency. Writes report.json and report.md.",
        allow_abbrev=False,
    )
    parser.add_argument("--teacher", type=Path, required=True, help="directory of the fine-tuned teacher")
    parser.add_argument("--student", type=Path, required=True, help="directory of the distilled student")
    parser.add_argument("--student_without_distillation", type=Path, help="directory of a student to compare with")
    parser.add_argument("--data_dir", type=Path, required=True, help="directory with the task's files")
    parser.add_argument("--task_name", help="a known task, such as sst-2")
    parser.add_argument("--task_file", type=Path, help="YAML file that describes a task of your own")
    parser.add_argument("--split", default="test", help="labelled split to measure on (default test)")
    parser.add_argument("--max_seq_length", type=int, help="tokens a row is cut to (default: the task's)")
    parser.add_argument("--output_dir", type=Path, required=True, help="where report.json and report.md go")
    parser.add_argument("--stages_file", type=Path, help='JSON list of {"name", "seconds"} to report as well')
    values = parser.parse_args(arguments)
    raise_all(list(_problems(values)))
    return values


def _problems(values: argparse.Namespace) -> Iterator[str]:
    for name in ("teacher", "student", "student_without_distillation", "data_dir"):
        path = getattr(values, name)
        if path is not None and not path.is_dir():
            yield f"--{name}: {path} is not a directory; give an existing one"
    if values.output_dir.exists() and not values.output_dir.is_dir():
        yield f"--output_dir: {values.output_dir} is a file; give a directory"
    elif foreign := [name for name in ("report.md", "report.json") if _is_foreign(values.output_dir / name)]:
        yield (
            f"--output_dir: {' and '.join(foreign)} in {values.output_dir} were not written by this command, which "
            "would replace them; give another directory (nothing was changed)"
        )
    if values.max_seq_length is not None and values.max_seq_length < 8:
        yield f"--max_seq_length is {values.max_seq_length}; give 8 or more"


def _is_foreign(path: Path) -> bool:
    """Whether there is a report, or anything else of its name, that another command has written."""
    if not os.path.lexists(path):
        return False
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            return not text.startswith(f"{TITLE}\n")
        report = json.loads(text)
    except (OSError, ValueError):
        return True
    return not (isinstance(report, dict) and {"teacher", "student", "compression", "speedup"} <= report.keys())


def read_stages(path: Path | None) -> list[dict[str, Any]]:
    """Return the stages of a `--stages_file` without unfinished ones; raises ConfigError if it is no such list."""
    if path is None:
        return []
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))
        return [
            {"name": str(stage["name"]), "seconds": float(stage["seconds"])}
            for stage in stages
            if stage.get("finished", True)  # this comparison may itself be a stage that is under way
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'--stages_file: {path} must be a JSON list of {{"name": ..., "seconds": ...}}; reading it gave {error!r}'
        ) from error


def main(arguments: Sequence[str] | None = None, *, seconds_before: float = 0.0) -> None:
    """Run the command; `seconds_before` it the process was started, which counts as its time."""
    begin = time.perf_counter() - seconds_before
    values = parse_arguments(arguments)
    spec = find_task(values.task_name, values.task_file)
    stages = read_stages(values.stages_file)
    max_seq_length = values.max_seq_length or spec.max_seq_length
    examples = read_split(spec, values.data_dir, values.split)
    train = read_split(spec, values.data_dir, "train")
    if examples.skipped_rows:
        print(f"{examples.path}: {examples.skipped_rows} rows lack fields and are left out", file=sys.stderr)
    if examples.labels is None:
        raise DataError(f"{examples.path} has no labels to measure against; name a labelled split with --split")

    directories = {"teacher": values.teacher, "student": values.student}
    if values.student_without_distillation is not None:
        directories["student_without_distillation"] = values.student_without_distillation
    candidates = [load_candidate(name, path, spec, examples, max_seq_length) for name, path in directories.items()]
    metrics = {candidate.name: measure_metric(candidate, spec, examples.labels) for candidate in candidates}
    latencies_ms = {
        size: measure_latency_ms(candidates, size, batches, ROUNDS) for size, batches in LATENCY_BATCHES.items()
    }
    majority = majority_metric(spec, train, examples.labels)
    own_stage = {"name": OWN_STAGE, "seconds": time.perf_counter() - begin}
    report = build_report(candidates, metrics, latencies_ms, majority, [*stages, own_stage] if stages else [])

    values.output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(values.output_dir / "report.md", render_report(report, spec, values.split, len(examples)))
    write_atomically(values.output_dir / "report.json", json.dumps(report, indent=2) + "\n")
    print(f"wrote {values.output_dir / 'report.md'} and report.json")
