"""The card of a model that was trained: all of it is read from what the runs left behind."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.arguments import FinetuneArguments, GeneralDistillArguments, TaskDistillArguments
from tinybert_ds.arguments.embed import EmbedDistillArguments
from tinybert_ds.arguments.inherit import InheritArguments
from tinybert_ds.arguments.option import Command, Flag, flags_of
from tinybert_ds.models.card import Card, Figure, figures_table, read_base_model
from tinybert_ds.records import read_metrics, read_run
from tinybert_ds.strict_formats import parse_json

COMMANDS: Mapping[str, type[Command]] = {
    "general_distill": GeneralDistillArguments,
    "task_distill": TaskDistillArguments,
    "finetune": FinetuneArguments,
    "embed_distill": EmbedDistillArguments,
}
"""By the first word of the stage that run.json names."""

START_FILE = "inherit.json"
"""Beside a student that inherit_student.py has started: what it was made of, and what its layers explain."""

_MADE_BY = {
    "general_distill": "general distillation: it learned the hidden states and attention of its teacher on plain text",
    "task_distill intermediate": "the intermediate stage of task distillation: it learned the hidden states and "
    "attention of a fine-tuned teacher",
    "task_distill prediction": "task distillation: it learned the predictions of a fine-tuned teacher",
    "task_distill joint": "task distillation: it learned the hidden states, the attention and the predictions of a "
    "fine-tuned teacher together",
    "finetune": "fine-tuning on the labels of a task",
    "embed_distill": "the distillation of vectors: it learned the vectors that its teacher gives texts",
}
_OFFERS = {"general_distill": "feature-extraction", "embed_distill": "sentence-similarity"}
_HEADS = {"ForTokenClassification": "token-classification", "ForQuestionAnswering": "question-answering"}
"""Part of the name of an architecture -> what it does."""
_NOT_FOR = {
    "general_distill": "Predictions of any kind: it has no head. Fine-tune it, or distil it on a task, first.",
    "task_distill intermediate": "Predictions: its head has not learned yet. It is the start of the prediction stage.",
}
_NOT_FOR_OTHER = (
    "Texts that are unlike those of its task in language, kind or length; other tasks; and decisions about people "
    "that nobody looks at. It repeats the mistakes and leanings of its teacher and of its training texts."
)
MADE = ("How it was made", "Data", "Losses and budget")
"""Sections that hold for whatever is made of a run's model."""
_NOT_OF_THE_RECIPE = (
    *("local_rank", "push_to_hub", "license", "languages", "datasets"),
    *("search", "search_learning_rates", "search_seeds"),  # of a search's trial, which has a rate and a seed of its own
)
_OF_STS = "_spearman"  # eval_FILE_spearman
_MOST_RUNS = 5  # of the chain that leads to a model


def run_card(directory: Path, rows: Mapping[str, int]) -> Card:
    """Return the card of a finished run's directory.

    Args:
        rows: Of each split that the run was judged on; empty where it was judged by its losses.
    """
    record = _record(directory)
    arguments, stage = _arguments(record), str(record["identity"].get("stage", ""))
    figures = _figures(record, rows)
    made_by = f"Made by {_MADE_BY.get(stage, stage)}, with TinyBERT-DS."
    sections = {
        "What it is": f"{made_by} {_sizes(record)}".strip(),
        **dict(zip(MADE, (_commands(directory), _data(record["identity"]), _budget(directory, record)), strict=True)),
        "Evaluation": figures_table(figures) if figures else "",
        "What it is not for": _NOT_FOR.get(stage, _NOT_FOR_OTHER),
    }
    teacher = arguments.get("teacher_model") or arguments.get("model")
    return Card(
        name=directory.resolve().name,
        pipeline_tag=_OFFERS.get(stage) or _offer(directory),
        library_name="sentence-transformers" if stage == "embed_distill" else "transformers",
        license=arguments.get("license"),
        language=arguments.get("languages") or (),
        base_model=read_base_model(Path(teacher)) if teacher else (),
        datasets=arguments.get("datasets") or (),
        figures=figures,
        sections=sections,
    )


def start_card(directory: Path, arguments: InheritArguments, data: str, lines: Sequence[str], *, anew: bool) -> Card:
    """Return the card of a student that was started in closed form.

    Args:
        arguments: Of the command, of several students this one alone.
        data: Fingerprint of the text that it was fitted on.
        lines: What its layers explain of the teacher's variance.
        anew: Whether it had no weights before.
    """
    of_task = arguments.data_dir is not None
    before = "no step of training was taken yet" if anew else "a part of the weights that it had is kept"
    return Card(
        name=directory.resolve().name,
        pipeline_tag=_offer(directory) if of_task else "feature-extraction",
        base_model=read_base_model(Path(arguments.teacher_model)),
        sections={
            "What it is": f"A student fitted to its teacher's weights in closed form, with TinyBERT-DS: {before}.",
            "How it was made": _commands(directory),
            "Data": _data({"data": data}),
            "What its layers explain": _fenced(lines, "text"),
            "What it is not for": _NOT_FOR_OTHER if of_task else _NOT_FOR["general_distill"],
        },
    )


def start_command(arguments: InheritArguments) -> str:
    """Return the command that starts such a student, without its directory."""
    return _command(InheritArguments, {**vars(arguments), "output_dir": ""})


def _offer(directory: Path) -> str:
    """What a model with a head does: it answers for each token, with a span, or for the text."""
    file = directory / "config.json"
    content = parse_json(file.read_bytes()) if file.is_file() else {}
    architectures = content.get("architectures") if isinstance(content, dict) else None
    for name, offer in _HEADS.items():
        if any(name in str(architecture) for architecture in architectures or ()):
            return offer
    return "text-classification"


def standard_error(metric: str, value: float, rows: int | None, accuracy: float | None = None) -> float | None:
    """Return the standard error of a share of rows, of F1 or of a correlation over them; None for other metrics.

    That of Spearman's correlation is Bonett and Wright's (Psychometrika 65, 2000), that of Pearson's Fisher's. F1 is
    made of true positives and of errors, which F1 and accuracy tell together: its error is theirs, to first order.

    Args:
        accuracy: Of the same rows, for F1.
    """
    if metric == "f1" and rows and accuracy is not None:
        errors = rows * (1 - accuracy)
        return (1 - value) * math.sqrt(value * (2 - value) / errors) if errors else 0.0
    if metric in ("accuracy", "subset_accuracy") and rows:
        return math.sqrt(value * (1 - value) / rows)
    if metric in ("pearson", "spearman") and rows and rows > 3:
        of_fisher_z = math.sqrt((1 + value**2 / 2 if metric == "spearman" else 1) / (rows - 3))
        return (1 - value**2) * of_fisher_z
    return None


def _record(directory: Path) -> dict[str, Any]:
    return dict(read_run(directory / "run.json"))


def _arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    return dict(record.get("arguments", {}))


def _figures(record: Mapping[str, Any], rows: Mapping[str, int]) -> list[Figure]:
    """The metrics of a finished run: the first split's have no name of their own, see `TaskData.evaluate_all`.

    Those of a run on texts are losses of held-out ones, and for each file of --sts a correlation, see `judge_likeness`.
    """
    results = (record.get("finished") or {}).get("results", {})
    arguments = _arguments(record)
    task = arguments.get("task_name") or Path(arguments.get("task_file") or "task").stem
    figures = []
    for name, value in results.items():
        metric, split = name.removeprefix("eval_"), next(iter(rows), "held-out text")
        for other in list(rows)[1:]:
            if metric.startswith(f"{other}_"):
                metric, split = metric.removeprefix(f"{other}_"), other
        if not rows and metric.endswith(_OF_STS):
            file, metric = metric.removesuffix(_OF_STS), _OF_STS.removeprefix("_")
            figures.append(Figure(metric, value, file, "STS file", of_datasets=False))
            continue
        count = rows.get(split)
        what = task if rows else "held-out text"
        accuracy = results.get(f"{name.removesuffix('f1')}accuracy")
        figures.append(Figure(metric, value, what, split, count, standard_error(metric, value, count, accuracy)))
    return figures


def _sizes(record: Mapping[str, Any]) -> str:
    versions = record.get("versions", {})
    told = [f"{name} {version}" for name, version in sorted(versions.items())]
    return f"Versions: {', '.join(told)}." if told else ""


def _commands(directory: Path) -> str:
    """The commands of this run and of those that it builds on, in the order in which they ran."""
    commands: list[str] = []
    waiting, seen = [directory.resolve()], set()
    while waiting and len(commands) < _MOST_RUNS:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        command, before = _made_by(path)
        if command:
            commands.insert(0, command)
        waiting += [Path(name).resolve() for name in before]
    return _fenced(commands)


def _made_by(path: Path) -> tuple[str, list[str]]:
    """The command that has made a directory, "" where that is not known, and the models that it began with.

    Of a run of several students all of them are named: it does not say which of them became this one.
    """
    if (path / "run.json").is_file():
        record = _record(path)
        arguments = _arguments(record)
        kind = COMMANDS.get(str(record["identity"].get("stage", "")).partition(" ")[0])
        named = [arguments.get(name) for name in ("student_model", "teacher_model", "model")]
        models = [name for one in named for name in (one if isinstance(one, list) else [one]) if isinstance(name, str)]
        return _command(kind, arguments) if kind else "", models
    started = read_start(path) or {}
    return str(started.get("command", "")), [str(model) for model in started.get("made_of", ())]


def read_start(path: Path) -> dict[str, Any] | None:
    """Return what is beside a student that was started in closed form; None where nothing readable is."""
    try:
        started = parse_json((path / START_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return started if isinstance(started, dict) else None


def _fenced(lines: Iterable[str], language: str = "bash") -> str:
    text = "\n".join(lines)
    return f"```{language}\n{text}\n```" if text else ""


def _command(kind: type[Command], arguments: Mapping[str, Any]) -> str:
    words = [f"deepspeed launchers/{kind.prog}"]
    for flag in flags_of(kind):
        value = arguments.get(flag.name, flag.default)
        if value not in (flag.default, "") and flag.name not in _NOT_OF_THE_RECIPE:
            words.append(" ".join([flag.shown, *(shlex.quote(word) for word in _words(flag, value))]))
    return " \\\n    ".join(words)


def _words(flag: Flag, value: Any) -> list[str]:
    """The values of a flag; of a path its last part, because the others are nobody's business."""
    if value is True:
        return []
    items = value if isinstance(value, list) else [value]
    return [Path(str(item)).name if flag.says.path else str(item) for item in items]


def _data(identity: Mapping[str, Any]) -> str:
    found = {
        "training data": identity.get("data"),
        "evaluation data": identity.get("evaluation_data"),
        "teacher": identity.get("teacher"),
        "student before it": identity.get("student") or identity.get("model"),
    }
    rows = [f"| {name} | `{value}` |" for name, value in found.items() if value]
    return "\n".join(["| | fingerprint (xxh3) |", "|---|---|", *rows]) if rows else ""


def _budget(directory: Path, record: Mapping[str, Any]) -> str:
    """Steps, samples and seconds, and what the losses were in the end."""
    lines = [line for line in read_metrics(directory / "metrics.jsonl") if "loss" in line]
    if not lines:
        return ""
    last = lines[-1]
    seconds = sum(line.get("clock", {}).get("seconds", 0.0) for line in lines)
    batch = _arguments(record).get("train_batch_size")
    losses = {name: value for name, value in last.items() if name.endswith("loss") and isinstance(value, float)}
    told = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    return (
        f"{last['step']:,} optimizer steps of {batch} samples, {last.get('samples', 0):,} samples in all, "
        f"{seconds:,.0f} s on {record.get('world_size', 1)} rank(s). At step {last['step']:,}: {told}."
    )
