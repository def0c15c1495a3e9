"""The user's own tasks, described in YAML files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinybert_ds.data.table_formats import names_its_columns
from tinybert_ds.data.task_spec import LABEL_COLUMNS, SEQUENCE_LENGTHS, SplitFile, TaskSpec, TextFormat
from tinybert_ds.data.teacher_columns import read_teacher
from tinybert_ds.errors import ConfigError, did_you_mean, raise_all
from tinybert_ds.foreign_text import listed, quoted, shown
from tinybert_ds.strict_formats import read_yaml
from tinybert_ds.targets import LABELS, SCORES, TARGETS, Target

_KEYS = {
    "name": "what the task is called",
    "files": "split -> file below --data_dir, or a list of files, or a pattern such as train-*.parquet: .tsv, .csv, "
    ".jsonl, .json (text may be .gz, .xz, .zst) or .parquet, or a directory of `datasets`' save_to_disk; train, dev "
    "and, if there is one, test",
    "header": "true if the files' first line names the columns (default), else false",
    "separator": "what stands between columns of text files: one character, `tab`, or several characters that are "
    "never quoted (default: a comma in .csv, else a tab)",
    "quotes": "true if fields of text files may stand in quotation marks, false if the marks are part of the text "
    "(default: false if separated by tabs, else true)",
    "encoding": "of text files, such as utf-16 or cp1252 (default: utf-8)",
    "text": "the column of the text, or a list of two columns for pairs; answer.text is the key text inside answer",
    "target": f"what a row is answered with: {', '.join(TARGETS)} (default: labels where they are listed, else scores)",
    "label": "the column of the label or the score",
    "labels": "list of the label names, in the order of the class ids",
    "aliases": "other spellings of labels in the files -> label name",
    "skip_labels": "list of labels whose rows are left out, such as - in SNLI",
    "teacher": "columns of the training rows with what a teacher said of them: {columns: [...], kind: logits, "
    "probabilities or scores}",
    "score_range": "lowest and highest score, for regression instead of labels",
    "metric": "one metric, or a list whose mean decides which checkpoint is best",
    "max_seq_length": "tokens a row is cut to",
    "eval_split": "the split that decides which checkpoint is best (default dev)",
}
_LISTED_PROBLEMS = 20


def load_task_file(path: str | Path) -> TaskSpec:
    """Read a user's task from a YAML file; `_KEYS` above says what it may hold.

    All scalars are taken as they are written, so a label `no` is the word and not a truth value.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or describes no usable task; all problems at once.
    """
    path = Path(path)
    content = read_yaml(path, "--task_file")
    if not isinstance(content, dict):
        raise ConfigError(f"--task_file: {path} must hold `key: value` lines; found {type(content).__name__}")
    target, problems = _target(content)
    keys = {**_KEYS, **target.keys}
    problems += [f"{shown(key)}: {_unknown(key, keys, target)}" for key in content if key not in keys]
    problems += [f"{key}: missing ({keys[key]})" for key in target.required if key not in content]
    if not problems:
        spec, problems = _build_spec(content, target, default_name=path.stem)
        if not problems:
            if lacks := target.lacks(spec):
                raise ConfigError(f"{path}: {lacks}")
            return spec
    listing = "\n".join(f"    {key}: {meaning}" for key, meaning in keys.items())
    if len(problems) > _LISTED_PROBLEMS:
        problems[_LISTED_PROBLEMS:] = [f"and {len(problems) - _LISTED_PROBLEMS} more problems"]
    raise_all(
        [f"{path}: {shown(problem, 500)}" for problem in problems[:-1]]
        + [f"{path}: {shown(problems[-1], 500)}\nA task file holds:\n{listing}"]
    )
    raise AssertionError("unreachable: there are problems")


def _target(content: dict[str, Any]) -> tuple[Target, list[str]]:
    """Return the target that a task file states or implies, and what is wrong with that."""
    scored, named = "score_range" in content, "labels" in content
    implied = SCORES if scored and not named else LABELS
    if "target" in content:
        stated = content["target"]
        target = TARGETS.get(stated) if isinstance(stated, str) else None
        if target is None:
            near = did_you_mean(stated[:80], TARGETS) if isinstance(stated, str) else ""
            if stated == "vectors":
                near = "; sentence vectors need no task: launchers/embed_distill.py learns them"
            return implied, [f"target: one of {', '.join(TARGETS)}, found {shown(stated)!r}{near}"]
        return target, target.key_problems(content)
    if named and scored:
        return implied, [
            "labels and score_range: give labels for classification or score_range for regression, not both"
        ]
    if not named and not scored:
        return implied, [f"labels: missing ({_KEYS['labels']}); for regression give score_range instead"]
    return implied, []


def _unknown(key: str, keys: Mapping[str, str], target: Target) -> str:
    """What is the matter with a key that the target does not know."""
    owners = [other.name for other in TARGETS.values() if key in other.keys]
    if owners:
        return f"for `target: {' or '.join(owners)}`; the target here is {target.name}"
    return f"unknown key{did_you_mean(key[:80], keys)}"


def _build_spec(content: dict[str, Any], target: Target, *, default_name: str) -> tuple[TaskSpec, list[str]]:
    """Return the task and what is wrong with it; keys are known and the required ones are there."""
    problems: list[str] = []
    texts = _strings(content["text"])
    labels = _strings(content.get("labels", []))
    metrics = _strings(content["metric"])
    files = content["files"] if isinstance(content["files"], dict) else {}
    named = {split: _strings(file) for split, file in files.items()}
    text_format, format_problems = _text_format(content)
    eval_split = str(content.get("eval_split", "dev"))
    aliases = content.get("aliases", {})
    header = str(content.get("header", "true")).lower()
    skip_labels = _strings(content.get("skip_labels", []))
    score_range = _score_range(content.get("score_range"), problems)
    max_seq_length = str(content.get("max_seq_length", SEQUENCE_LENGTHS.get(len(texts), 64)))

    if len(texts) not in (1, 2):
        problems.append(f"text: one or two columns are possible, found {len(texts)}")
    if "train" not in files or eval_split not in files:
        problems.append(f"files: needs `train` and `{eval_split}` (eval_split), found {listed(files) or 'none'}")
    problems += _file_problems(files)
    problems += format_problems
    problems += _header_problems(header, named)
    if not _is_length(max_seq_length):
        problems.append(f"max_seq_length: a whole number from 8 up, found {quoted(max_seq_length)}")
    label, label_columns, label_problems = _label_columns(content["label"], labels, target)
    problems += label_problems
    problems += _column_problems(texts, label_columns or (label,))
    problems += _alias_problems(aliases, labels)
    problems += _label_problems(content, labels, skip_labels, aliases, target)
    problems += _metric_problems(metrics, labels, target)
    more_columns = {**({LABEL_COLUMNS: label_columns} if label_columns else {}), **target.more_columns(content)}
    own, own_problems = target.read_keys(content)
    teacher, teacher_problems = read_teacher(content.get("teacher"), target, own.get("label_names", labels))
    problems += own_problems + teacher_problems
    usual = SplitFile("", tuple(texts), label, header == "true", text_format=text_format, more_columns=more_columns)
    spec = TaskSpec(
        name=str(content.get("name", default_name)),
        splits={
            split: replace(usual, file=names[0], label_required=split != "test", more_files=tuple(names[1:]))
            for split, names in named.items()
            if names
        },
        metrics=tuple(metrics),
        official=tuple(metrics),
        eval_splits=(eval_split,),
        label_names=tuple(labels),
        label_aliases={alias.lower(): name for alias, name in aliases.items()} if isinstance(aliases, dict) else {},
        score_range=score_range,
        max_seq_length=int(max_seq_length) if _is_length(max_seq_length) else 64,
        skip_labels=tuple(skip_labels),
        teacher=teacher,
        target="" if target in (LABELS, SCORES) else target.name,
    )
    return replace(spec, **own), problems


def _file_problems(files: dict[str, Any]) -> list[str]:
    problems = []
    for split, given in files.items():
        names = given if isinstance(given, list) else [given]
        if not names or not all(isinstance(name, str) and name for name in names):
            problems.append(f"files: {split}: a file name or a list of them, found {shown(given or 'none')}")
    return problems


def _header_problems(header: str, named: dict[str, list[str]]) -> list[str]:
    if header not in ("true", "false"):
        return [f"header: true or false, found {shown(header)!r}"]
    return [
        f"header: {file} names its columns by itself; leave `header: false` out"
        for names in named.values()
        for file in names
        if header == "false" and names_its_columns(file)
    ]


def _text_format(content: dict[str, Any]) -> tuple[TextFormat, list[str]]:
    """Return how text files are written and what is wrong with it."""
    problems = []
    separator, encoding = content.get("separator", ""), content.get("encoding", "")
    quotes = content.get("quotes", "")
    if separator in ("tab", "\\t"):
        separator = "\t"
    if "separator" in content and (
        not isinstance(separator, str) or not separator or any(mark in separator for mark in '"\r\n')
    ):
        problems.append(
            f"separator: what stands between two columns, without quotation marks, found {shown(separator)!r}"
        )
    if "encoding" in content and not _is_encoding(encoding):
        problems.append(f"encoding: a name that Python knows, such as utf-16 or cp1252, found {shown(encoding)!r}")
    if "quotes" in content and quotes not in ("true", "false"):
        problems.append(f"quotes: true or false, found {shown(quotes)!r}")
    if quotes == "true" and isinstance(separator, str) and len(separator) > 1:
        problems.append("quotes: fields between separators of several characters cannot be quoted; leave it out")
    files = content["files"] if isinstance(content["files"], dict) else {}
    names = [name for given in files.values() for name in _strings(given)]
    stated = [key for key in ("separator", "quotes") if key in content]
    if stated and names and all(names_its_columns(name) for name in names):
        problems.append(f"{', '.join(stated)}: for text files only; {listed(names, 2)} names its columns by itself")
    if problems:
        return TextFormat(), problems
    return TextFormat(separator, encoding, None if quotes == "" else quotes == "true"), []


def _is_encoding(name: Any) -> bool:
    try:
        return isinstance(name, str) and b"a\n".decode("ascii").encode(name) != b""
    except (LookupError, UnicodeError, ValueError):  # the last: a name with a null byte
        return False


def _is_length(text: str) -> bool:
    return text.isdecimal() and len(text) < 9 and int(text) >= 8


def _label_problems(
    content: dict[str, Any], labels: list[str], skip_labels: list[str], aliases: Any, target: Target
) -> list[str]:
    known = {label.lower() for label in [*labels, *(aliases if isinstance(aliases, dict) else [])]}
    problems = [
        f"skip_labels: {quoted(label)} is one of labels or aliases too; leave it out there or here"
        for label in skip_labels
        if label.lower() in known
    ]
    fewest = 1 if "scheme" in content else 2  # of entities one is enough
    if "labels" in content and (len(labels) < fewest or len({label.lower() for label in labels}) < len(labels)):
        problems.append(f"labels: at least two different names (capitals do not count), found {listed(labels)}")
    if target is LABELS and "o" in known and any(label.lower().startswith(("b-", "i-")) for label in labels):
        problems.append(f"labels: {listed(labels)} label the tokens of a text, for which there is `target: tags`")
    return problems


def _label_columns(given: Any, labels: list[str], target: Target) -> tuple[str, tuple[str, ...], list[str]]:
    """Return the column of the label, those of yes and no where there is one for each label, and what is wrong."""
    if isinstance(given, str):
        return given, (), []
    if not target.several_columns or not isinstance(given, list | dict):
        return "", (), [f"label: one column, found {shown(given)}"]
    named = {str(name).lower(): str(column) for name, column in (given.items() if isinstance(given, dict) else ())}
    columns = [str(column) for column in given] if isinstance(given, list) else list(named.values())
    if len(columns) != len(labels) or (named and set(named) != {label.lower() for label in labels}):
        return "", (), [f"label: one column, or one for each of {listed(labels)}; found {listed(map(str, given))}"]
    ordered = tuple(named[label.lower()] for label in labels) if named else tuple(columns)
    return ordered[0], ordered, []


def _column_problems(texts: list[str], labels: Sequence[str]) -> list[str]:
    columns = [*texts, *labels]
    return [
        f"text, label: column {quoted(column)} cannot be two of them; found text {listed(texts)} and label "
        f"{listed(labels)}"
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
    if not low < high or not (math.isfinite(low) and math.isfinite(high)):
        problems.append(f"score_range: two numbers, the lower first, such as [0, 5]; found {shown(value)}")
    return low, high


def _alias_problems(aliases: Any, labels: list[str]) -> list[str]:
    if not isinstance(aliases, dict):
        return [f"aliases: `spelling: label name` pairs, found {shown(aliases)}"]
    problems = [
        f"aliases: {shown(alias)!r} stands for {shown(name)!r}, which is not in labels ({listed(labels) or 'none'})"
        for alias, name in aliases.items()
        if name not in labels
    ]
    meanings = [
        (spelling.lower(), name) for spelling, name in [*((label, label) for label in labels), *aliases.items()]
    ]
    return problems + [
        f"aliases: {shown(alias)!r} stands for {shown(name)!r} and for something else too (capitals do not count)"
        for alias, name in aliases.items()
        if any(spelling == alias.lower() and other != name for spelling, other in meanings)
    ]


def _metric_problems(metrics: list[str], labels: list[str], target: Target) -> list[str]:
    problems = [
        f"metric: {quoted(name)} is no metric for {target.kind}; one of {', '.join(target.metrics)}"
        for name in metrics
        if name not in target.metrics
    ]
    if "f1" in metrics and target is LABELS and len(labels) > 2:
        problems.append(f"metric: f1 is for two labels, found {len(labels)}; use macro_f1")
    return problems or ([] if metrics else ["metric: at least one"])
