"""Whether a student can be started in closed form from a teacher: asked of their configs, before anything is loaded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tinybert_ds.errors import raise_all
from tinybert_ds.models.inherit.layers import require_known


def check_inheritance(teacher_config: Any, student_config: Any, layer_map: tuple[int, ...]) -> None:
    """Refuse what has no closed form.

    Args:
        teacher_config, student_config: Their Hugging Face configs, which share a vocabulary.
        layer_map: The teacher's state for each state of the student.

    Raises:
        ModelError: An architecture that the table of `layers` does not have.
        ConfigError: Sizes or a layer map that do not fit, each with what to change, at once.
    """
    for config in (teacher_config, student_config):
        require_known(config)
    found = [
        *_size_problems(teacher_config, student_config),
        *_embedding_problems(teacher_config, student_config),
        *_map_problems(layer_map),
    ]
    raise_all(found)


def _size_problems(teacher: Any, student: Any) -> list[str]:
    found = []
    if student.hidden_size > teacher.hidden_size:
        found.append(
            f"the student's hidden_size {student.hidden_size} is larger than the teacher's {teacher.hidden_size}, "
            "which has no more to give; take a narrower student, or start it from random weights"
        )
    if _activation(student) != _activation(teacher):
        found.append(
            f"the student's activation is {_activation(student)}, the teacher's {_activation(teacher)}: neurons cannot "
            "be taken over; give the student's config.json the teacher's"
        )
    positions = _positions(teacher), _positions(student)
    if positions[1] > positions[0]:
        found.append(
            f"the student has {positions[1]} positions, the teacher only {positions[0]} to take them from; lower "
            '"max_position_embeddings" in the student\'s config.json'
        )
    return found


def _embedding_problems(teacher: Any, student: Any) -> list[str]:
    (teacher_size, factorised), (student_size, own_factorised) = _embedding_size(teacher), _embedding_size(student)
    if factorised != own_factorised:
        who = ("teacher has", "student has none") if factorised else ("student has", "teacher has none")
        return [
            f"the {who[0]} a linear layer between its embeddings and its hidden states, the {who[1]}: give both or "
            'neither an "embedding_size" of their own, or start from random weights'
        ]
    if factorised and student_size > teacher_size:
        return [
            f"the student's embedding_size {student_size} is larger than the teacher's {teacher_size}; lower it in the "
            "student's config.json"
        ]
    return []


def _map_problems(layer_map: tuple[int, ...]) -> list[str]:
    if layer_map[0] == 0 and all(later > earlier for earlier, later in pairwise(layer_map)):
        return []
    return [
        f"layer map {list(layer_map)}: to start from its teacher each layer of a student needs layers of the teacher "
        "that no other has; write states that begin with 0 and rise at each step, or start from random weights"
    ]


def _activation(config: Any) -> Any:
    return getattr(config, "hidden_act", None) or config.activation


def _positions(config: Any) -> int:
    """How many tokens the position table holds: RoBERTa's begins behind its padding."""
    behind_padding = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return int(config.max_position_embeddings) - (config.pad_token_id + 1 if behind_padding else 0)


def _embedding_size(config: Any) -> tuple[int, bool]:
    size = getattr(config, "embedding_size", None) or config.hidden_size
    return size, size != config.hidden_size
