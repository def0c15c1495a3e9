"""Which layers' relations between tokens are compared. Layers are counted from 1, as states are."""

from __future__ import annotations

from collections.abc import Sequence

from tinybert_ds.errors import ConfigError, raise_all


def choose_relation_layers(
    asked: Sequence[tuple[int, int]] | None, layer_map: tuple[int, ...], teacher_layers: int
) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student layer, teacher layer), from 1, of a student.

    Args:
        asked: The pairs of `--relation_layers`; empty: all student layers by the layer map; None: the student's last
            layer and the teacher's last but one, since the last one serves what the teacher was trained for
            (arXiv 2012.15828, section 4).
        layer_map: See `parse_layer_map`.

    Raises:
        ConfigError: Layers that one of the two does not have.
    """
    student_layers = len(layer_map) - 1
    if asked is None:
        return ((student_layers, max(1, teacher_layers - 1)),)
    if not asked:
        return tuple(enumerate(layer_map[1:], start=1))
    raise_all(
        [
            f"--relation_layers {student}:{teacher} names layer {number} of the {role}, which has layers 1..{depth}"
            for student, teacher in asked
            for role, number, depth in (("student", student, student_layers), ("teacher", teacher, teacher_layers))
            if number > depth
        ],
        ConfigError,
    )
    return tuple(asked)
