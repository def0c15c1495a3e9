"""Which teacher states the student states imitate.

A layer map is a tuple (s0, ..., sM): student state i imitates teacher state s(i), and state 0 is the embedding output.
Student attention layer i (0-based) imitates teacher attention layer s(i + 1) - 1, the layer that made that state.
N teacher layers, M student layers.
"""

from __future__ import annotations

from itertools import pairwise

from tinybert_ds.errors import ConfigError
from tinybert_ds.foreign_text import quoted

_NAMES = "uniform, last, first or a list of teacher states such as 0,4,8,12"


def parse_layer_map(spec: str, teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Turn the value of `--layer_map` into a layer map (arXiv 1909.10351, section 3.1 and its ablation of g(m)).

    Args:
        spec: "uniform" (s(i) = i·N/M), "last" (s(i) = i + N - M, s(0) = 0), "first" (s(i) = i), or M + 1 teacher states
            separated by commas. A list must not decrease, since a later student layer sees only what the earlier ones
            made; it may repeat a state (a student deeper than its teacher has to), and s(0) may be any state.

    Returns:
        M + 1 teacher states, each in 0..N and from the second on in 1..N.

    Raises:
        ConfigError: A map that does not fit the two models.
    """
    word = spec.strip().lower()
    if word == "uniform":
        return _uniform(teacher_layers, student_layers)
    if word in ("last", "first"):
        if student_layers > teacher_layers:
            raise ConfigError(
                f"layer map {word!r} needs a student no deeper than its teacher; the student has {student_layers} "
                f"layers, the teacher {teacher_layers}: write the states as a list, such as 0,1,1,2"
            )
        offset = teacher_layers - student_layers if word == "last" else 0
        return (0, *(i + offset for i in range(1, student_layers + 1)))
    return _explicit(spec, teacher_layers, student_layers)


def attention_layers(layer_map: tuple[int, ...]) -> tuple[int, ...]:
    """Return the teacher attention layer (0-based) of each student attention layer: s(i + 1) - 1."""
    return tuple(state - 1 for state in layer_map[1:])


def _uniform(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    if teacher_layers % student_layers:
        divisors = [m for m in range(1, teacher_layers + 1) if teacher_layers % m == 0]
        raise ConfigError(
            f"layer map 'uniform' needs a teacher depth that is a multiple of the student's; the teacher has "
            f"{teacher_layers} layers, the student {student_layers}: take a student with one of {divisors} layers, or "
            "another map (last, first, or a list of teacher states)"
        )
    step = teacher_layers // student_layers
    return tuple(i * step for i in range(student_layers + 1))


def _explicit(spec: str, teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    words = [word.strip() for word in spec.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError(f"layer map {quoted(spec)} is not known; it may be {_NAMES}")
    layer_map = tuple(int(word) for word in words)
    shown = f"layer map {list(layer_map)}"
    if len(layer_map) != student_layers + 1:
        raise ConfigError(
            f"{shown} has {len(layer_map)} entries; a {student_layers}-layer student needs {student_layers + 1} "
            f"(embeddings + {student_layers} layers)"
        )
    if max(layer_map) > teacher_layers:
        raise ConfigError(
            f"{shown} names teacher state {max(layer_map)}; a {teacher_layers}-layer teacher has states "
            f"0..{teacher_layers} (0: embeddings)"
        )
    if any(later < earlier for earlier, later in pairwise(layer_map)):
        raise ConfigError(f"{shown} goes back; write teacher states in an order that does not decrease")
    if 0 in layer_map[1:]:
        raise ConfigError(
            f"{shown} maps a student layer to teacher state 0, the embeddings, which have no attention scores to "
            "imitate; use states from 1 up after the first entry"
        )
    return layer_map
