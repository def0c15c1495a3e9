"""The user's own tasks, described in YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tinybert_ds.data.table_formats import names_its_columns
from tinybert_ds.data.task_spec import CLASSIFICATION_METRICS, REGRESSION_METRICS, SEQUENCE_LENGTHS, SplitFile, TaskSpec
from tinybert_ds.errors import ConfigError, raise_all

_KEYS = {
    "name": "what the task is called",
    "files": "split -> file below --data_dir: .tsv, .csv, .jsonl or .parquet; train, dev and, if there is one, test",
    "header": "true if the files' first line names the columns (default), else false",
    "text": "the column of the text, or a list of two columns for pairs",
    "label": "the column of the label or the score",
    "labels": "list of the label names, in the order of the class ids",
    "aliases": "other spellings of labels in the files -> label name",
    "score_range": "lowest and highest score, for regression instead of labels",
    "metric": "one metric, or a list whose mean decides which checkpoint is best",
    "max_seq_length": "tokens a row is cut to",
    "eval_split": "the split that decides which checkpoint is best (default dev)",
}
_REQUIRED = ("files", "text", "label", "metric")


def load_task_file(path: str | Path) -> TaskSpec:
    """Read a user's task from a YAML file; `_KEYS` above says what it may hold.

    All scalars are taken as they are written, so a label `no` is the word and not a truth value.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or describes no usable task; all problems at once.
    """
    path = Path(path)
    content = _read_yaml(path)
    problems = [f"{key}: unknown key" for key in content if key not in _KEYS]
    problems += [f"{key}: missing ({_KEYS[key]})" for key in _REQUIRED if key not in content]
    if "labels" in content and "score_range" in content:
        problems.append(
            "labels and score_range: give labels for classification or score_range for regression, not both"
        )
    if "labels" not in content and "score_range" not in content:
        problems.append(f"labels: missing ({_KEYS['labels']}); for regression give score_range instead")
    if not problems:
        spec, problems = _build_spec(content, default_name=path.stem)
        if not problems:
            return spec
    listing = "\n".join(f"    {key}: {meaning}" for key, meaning in _KEYS.items())
    raise_all(
        [f"{path}: {problem}" for problem in problems[:-1]] + [f"{path}: {problems[-1]}\nA task file holds:\n{listing}"]
    )
    raise AssertionError("unreachable: there are problems")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # strings as written
    except OSError as error:
        raise ConfigError(f"--task_file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--task_file: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--task_file: {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--task_file: {path} must hold `key: value` lines; found {type(content).__name__}")
    return content


def _build_spec(content: dict[str, Any], default_name: str) -> tuple[TaskSpec, list[str]]:
    """Return the task and what is wrong with it; keys are known and the required ones are there."""
    problems: list[str] = []
    texts = _strings(content["text"])
    labels = _strings(content.get("labels", []))
    metrics = _strings(content["metric"])
    files = content["files"] if isinstance(content["files"], dict) else {}
    eval_split = str(content.get("eval_split", "dev"))
    aliases = content.get("aliases", {})
    header = str(content.get("header", "true")).lower()
    score_range = _score_range(content.get("score_range"), problems)
    max_seq_length = str(content.get("max_seq_length", SEQUENCE_LENGTHS.get(len(texts), 64)))

    if len(texts) not in (1, 2):
        problems.append(f"text: one or two columns are possible, found {len(texts)}")
    if "train" not in files or eval_split not in files:
        problems.append(f"files: needs `train` and `{eval_split}` (eval_split), found {', '.join(files) or 'none'}")
    problems += [
        f"files: {split}: one file name, found {file or 'none'}"
        for split, file in files.items()
        if not isinstance(file, str) or not file
    ]
    if header not in ("true", "false"):
        problems.append(f"header: true or false, found {header!r}")
    problems += [
        f"header: {file} names its columns by itself; leave `header: false` out"
        for file in files.values()
        if header == "false" and names_its_columns(str(file))
    ]
    if "labels" in content and (len(labels) < 2 or len({label.lower() for label in labels}) < len(labels)):
        problems.append(f"labels: at least two different names (capitals do not count), found {labels}")
    if not max_seq_length.isdecimal() or int(max_seq_length) < 8:
        problems.append(f"max_seq_length: a whole number from 8 up, found {max_seq_length!r}")
    problems += _column_problems(content, texts)
    problems += _alias_problems(aliases, labels)
    problems += _metric_problems(metrics, labels)
    spec = TaskSpec(
        name=str(content.get("name", default_name)),
        splits={
            str(split): SplitFile(
                str(file), tuple(texts), str(content["label"]), header == "true", label_required=split != "test"
            )
            for split, file in files.items()
        },
        metrics=tuple(metrics),
        official=tuple(metrics),
        eval_splits=(eval_split,),
        label_names=tuple(labels),
        label_aliases={alias.lower(): name for alias, name in aliases.items()} if isinstance(aliases, dict) else {},
        score_range=score_range,
        max_seq_length=int(max_seq_length) if max_seq_length.isdecimal() else 64,
    )
    return spec, problems


def _column_problems(content: dict[str, Any], texts: list[str]) -> list[str]:
    label = content["label"]
    columns = [*texts, label]
    if not isinstance(label, str):
        return [f"label: one column, found {label}"]
    return [
        f"text, label: column {column!r} cannot be two of them; found text {', '.join(texts)} and label {label}"
        for column in dict.fromkeys(columns)
        if columns.count(column) > 1
    ]


def _strings(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _score_range(value: Any, problems: list[str]) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(item) for item in value) if isinstance(value, list) else (0.0, 0.0)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high:
        problems.append(f"score_range: two numbers, the lower first, such as [0, 5]; found {value}")
    return low, high


def _alias_problems(aliases: Any, labels: list[str]) -> list[str]:
    if not isinstance(aliases, dict):
        return [f"aliases: `spelling: label name` pairs, found {aliases!r}"]
    problems = [
        f"aliases: {alias!r} stands for {name!r}, which is not in labels ({', '.join(labels) or 'none'})"
        for alias, name in aliases.items()
        if name not in labels
    ]
    meanings = [
        (spelling.lower(), name) for spelling, name in [*((label, label) for label in labels), *aliases.items()]
    ]
    return problems + [
        f"aliases: {alias!r} stands for {name!r} and for something else too (capitals do not count)"
        for alias, name in aliases.items()
        if any(spelling == alias.lower() and other != name for spelling, other in meanings)
    ]


def _metric_problems(metrics: list[str], labels: list[str]) -> list[str]:
    allowed = CLASSIFICATION_METRICS if labels else REGRESSION_METRICS
    kind = "classification" if labels else "regression"
    problems = [
        f"metric: {name!r} is no metric for {kind}; one of {', '.join(allowed)}"
        for name in metrics
        if name not in allowed
    ]
    if "f1" in metrics and len(labels) > 2:
        problems.append(f"metric: f1 is for two labels, found {len(labels)}; use macro_f1")
    return problems or ([] if metrics else ["metric: at least one"])
