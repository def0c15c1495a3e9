"""Which teacher states the student states imitate.

A layer map is a tuple (s0, ..., sM): student state i imitates teacher state s(i), and state 0 is the embedding output.
Student attention layer i (0-based) imitates teacher attention layer s(i + 1) - 1, the layer that made that state.
N teacher layers, M student layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tinybert_ds.errors import ConfigError
from tinybert_ds.foreign_text import quoted

_NAMES = "uniform, last, first or a list of teacher states such as 0,4,8,12"


def parse_layer_map(
    spec: str, teacher_layers: int, student_layers: int, full_attention: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Turn the value of `--layer_map` into a layer map (arXiv 1909.10351, section 3.1 and its ablation of g(m)).

    Args:
        spec: "uniform" (s(i) is i·N/M, or the state that is nearest to it), "last" (s(i) = i + N - M, s(0) = 0),
            "first" (s(i) = i), or M + 1 teacher states separated by commas. A list must not decrease, since a later
            student layer sees only what the earlier ones made; it may repeat a state (a student deeper than its teacher
            has to), and s(0) may be any state.
        full_attention: Teacher layers, from 1, whose attention can be imitated; None: all. "uniform" keeps to them
            where there are enough.

    Returns:
        M + 1 teacher states, each in 0..N and from the second on in 1..N.

    Raises:
        ConfigError: A map that does not fit the two models.
    """
    word = spec.strip().lower()
    if word in ("uniform", "last", "first"):
        if student_layers > teacher_layers:
            raise ConfigError(
                f"layer map {word!r} needs a student no deeper than its teacher; the student has {student_layers} "
                f"layers, the teacher {teacher_layers}, so that some states have none of their own to imitate: take a "
                "deeper teacher or a student of fewer layers, or write the states as a list with repeats, such as "
                "0,1,1,2"
            )
        if word == "uniform":
            return _uniform_among(full_attention, teacher_layers, student_layers)
        offset = teacher_layers - student_layers if word == "last" else 0
        return (0, *(i + offset for i in range(1, student_layers + 1)))
    return _explicit(spec, teacher_layers, student_layers)


def full_attention_layers(config: Any, sequence_length: int) -> tuple[int, ...]:
    """Return the layers of a model, from 1, in which each token of such a sequence sees all others, as far as its
    config says (a sliding window that is wider than the sequence hides nothing)."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    hides = window is not None and sequence_length - 1 > window
    return tuple(number for number, kind in enumerate(kinds, start=1) if kind != "sliding_attention" or not hides)


def attention_layers(layer_map: tuple[int, ...]) -> tuple[int, ...]:
    """Return the teacher attention layer (0-based) of each student attention layer: s(i + 1) - 1."""
    return tuple(state - 1 for state in layer_map[1:])


def _uniform(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """i·N/M, rounded half up; the steps are at least 1 long, so that no state comes twice."""
    return tuple((2 * i * teacher_layers + student_layers) // (2 * student_layers) for i in range(student_layers + 1))


def _uniform_among(full_attention: Sequence[int] | None, teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The uniform map, or where some of its layers hide tokens a uniform one of those that do not, if they suffice."""
    layer_map = _uniform(teacher_layers, student_layers)
    if full_attention is None or set(layer_map[1:]) <= set(full_attention) or len(full_attention) < student_layers:
        return layer_map
    return (0, *(full_attention[number - 1] for number in _uniform(len(full_attention), student_layers)[1:]))


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
