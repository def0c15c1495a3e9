"""Labels are matched by name, never by position: two sources of one task may number its classes differently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinybert_ds.errors import ModelError
from tinybert_ds.foreign_text import listed

_GENERIC = re.compile(r"label_\d+", re.IGNORECASE)


HeadKind = Literal["one", "several", "tokens", "spans"]
"""What a head answers: one label of several or a score, any number of labels, a label for each token, or where a span
begins and ends."""

SETTINGS = ("thresholds",)
"""What a config may hold of our own about a head, a list with an entry for each output."""

_PROBLEM_TYPES: Mapping[str, str | None] = {
    "one": "single_label_classification",
    "several": "multi_label_classification",
    "tokens": None,
    "spans": None,
}


@dataclass(frozen=True)
class Head:
    """A classification head: the task's labels in the order of their ids, or None for regression."""

    label_names: tuple[str, ...] | None
    pooler_relu: bool = False
    kind: HeadKind = "one"


def output_names(config: Any) -> tuple[str, ...]:
    """Return the names of a classifier's outputs, in the order of its logits."""
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def has_generic_labels(config: Any) -> bool:
    """Whether the config only has the names LABEL_0, LABEL_1, ... that transformers makes up."""
    return all(_GENERIC.fullmatch(name) for name in output_names(config))


def set_labels(config: Any, label_names: Sequence[str] | None, kind: HeadKind = "one") -> None:
    """Write a task's labels into a model config, in place.

    Args:
        label_names: In the order of the class ids; None for a regression with one output.
        kind: What the head answers.
    """
    names = ("score",) if label_names is None else tuple(label_names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    for name in SETTINGS:  # of the head that was there
        if hasattr(config, name):
            delattr(config, name)
    config.problem_type = "regression" if label_names is None else _PROBLEM_TYPES[kind]


def match_labels(
    config: Any,
    label_names: Sequence[str],
    aliases: Mapping[str, str],
    stated: Sequence[str] | None,
    *,
    role: str = "teacher",
    kind: HeadKind = "one",
) -> tuple[int, ...]:
    """Find a classifier's output for each label of the task.

    Args:
        label_names: The task's labels, in the order of its class ids.
        aliases: Other spellings -> label name, lower case.
        stated: The names of the outputs in their order, from `--teacher_labels`; None to take its config's.
        kind: What the task's head answers.

    Returns:
        Columns of the teacher's logits: `logits[:, columns]` is in the task's order. Capitals do not count, nor does
        the difference of space, hyphen and underscore.

    Raises:
        ModelError: Outputs that exclude each other where the task's do not or the other way round, a number of them
            that differs from the task's, generic names, or names that are no label.
    """
    problem_type = getattr(config, "problem_type", None)
    if kind == "several" and problem_type not in (None, _PROBLEM_TYPES["several"]):
        raise ModelError(
            f'the {role}\'s config.json says "problem_type": "{problem_type}", and this task has any number of labels '
            "a row, each with a sigmoid of its own; give a model that was trained so, or, if this one was, write "
            '"multi_label_classification" there'
        )
    if kind == "one" and problem_type == _PROBLEM_TYPES["several"]:
        raise ModelError(
            f'the {role}\'s config.json says "problem_type": "multi_label_classification": each of its outputs is a '
            "yes or no of its own, and this task has one label a row, read by a softmax over all outputs; give a model "
            'that was trained so, or, if this one was, write "single_label_classification" there'
        )
    count = len(config.id2label)
    names = list(stated) if stated is not None else list(output_names(config))
    if len(names) != count:
        raise ModelError(
            f"--teacher_labels names {len(names)} outputs ({listed(names)}); the {role} has {count}: name each of "
            "them once, in its order"
        )
    if count != len(label_names):
        raise ModelError(
            f"the {role} has {count} outputs ({listed(names)}); the task has {len(label_names)} labels "
            f"({listed(label_names)}): give a model that was fine-tuned on this task"
        )
    if stated is None and has_generic_labels(config):
        raise ModelError(
            f"the {role}'s config names its outputs {listed(names)}, which says nothing; state their order, such "
            f"as --teacher_labels {','.join(label_names)}, or, if it never learned the task, fine-tune it first"
        )
    spellings = {_normal(alias): _normal(name) for alias, name in aliases.items()}
    labels = [_normal(name) for name in label_names]
    found = [spellings.get(word, word) if word not in labels else word for word in map(_normal, names)]
    if sorted(found) != sorted(labels):
        raise ModelError(
            f"the {role}'s outputs ({listed(names)}) are not the task's labels ({listed(label_names)}); state what "
            f"they stand for, in the model's order, such as --teacher_labels {','.join(label_names)}"
        )
    return tuple(found.index(label) for label in labels)


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().casefold())
