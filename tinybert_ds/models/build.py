"""The student: made from a config with random weights, or loaded; and whether it fits its teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import tinybert_ds
from tinybert_ds.errors import ConfigError, ModelError, did_you_mean, raise_all
from tinybert_ds.models.capture import COMPARE_RELATIONS, LEAVE_ATTENTION_OUT
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.inherit.factors import leading_basis
from tinybert_ds.models.labels import Head, set_labels
from tinybert_ds.models.layer_map import full_attention_layers, parse_layer_map
from tinybert_ds.models.pretrained import (
    HEAD_CLASSES,
    has_weights,
    load_classifier,
    load_encoder,
    read_config,
    seeded,
)

logger = logging.getLogger(__name__)

STUDENTS_DIR = Path(tinybert_ds.__file__).parent / "students"


def shipped_students() -> tuple[str, ...]:
    """Return the names of the student configs that come with the package."""
    return tuple(sorted(path.stem for path in STUDENTS_DIR.glob("*.json")))


def resolve_student(source: str | Path) -> Path:
    """Find a student: a directory, a config file, or the name of a shipped config.

    Raises:
        ModelError: None of these.
    """
    path = Path(source)
    shipped = STUDENTS_DIR / f"{source}.json"
    if path.exists():
        return path
    if str(source) in shipped_students():
        return shipped
    near = did_you_mean(str(source), shipped_students())
    raise ModelError(
        f"student {str(source)!r} does not exist{near}; give a directory, a config.json, or one of the shipped "
        f"students: {', '.join(shipped_students())}"
    )


def find_student(source: str | Path, *, weights: Literal["random", "load"]) -> Path:
    """Find a student and check that it holds weights exactly where it should; nothing is loaded.

    Args:
        source: A directory with or without weights, a config.json, or a shipped student's name.
        weights: "random": new ones are to be drawn, and the source must hold none that would be thrown away
            (`--continue_train` loads them). "load": the source's own.

    Raises:
        ModelError: Nothing at `source`; weights where none are wanted, or none where they are.
    """
    path = resolve_student(source)
    present = path.is_dir() and has_weights(path)
    if weights == "load" and not present:
        raise ModelError(
            f"student {source} holds no weights, and this command starts from trained ones; give the directory "
            "that general distillation wrote, or another one with a model.safetensors"
        )
    if weights == "random" and present:
        raise ModelError(
            f"student {source} holds weights that would be thrown away; give --continue_train to start from them, or "
            "the path of its config.json to start from random ones"
        )
    return path


def build_student(
    source: str | Path, *, weights: Literal["random", "load"], head: Head | None, seed: int
) -> PreTrainedModel:
    """Make the student, in float32 and eval mode.

    Args:
        head: With a classification head, or None for the bare encoder.
        seed: Of all new weights; the same seed gives the same student on every rank.

    Raises:
        ModelError: A config that cannot be built; whatever `find_student`, `load_encoder` and `load_classifier` raise.
    """
    path = find_student(source, weights=weights)
    if weights == "random":
        return _random_student(path, head, seed)
    if head is None:
        return load_encoder(path, role="student", seed=seed)
    return load_classifier(
        path, label_names=head.label_names, role="student", pooler_relu=head.pooler_relu, seed=seed, kind=head.kind
    )


def _random_student(path: Path, head: Head | None, seed: int) -> PreTrainedModel:
    config = read_config(path, role="student")
    auto_class: Any = AutoModel
    if head is not None:
        set_labels(config, head.label_names, head.kind)
        auto_class = HEAD_CLASSES[head.kind]
    advice = "correct it, or use an architecture such as BERT"
    with foreign_code(f"no model can be built from {path}", advice), seeded(seed):
        return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()


def check_pair(
    teacher_config: Any,
    student_config: Any,
    *,
    layer_map: str | None,
    projection: Literal["per_layer", "shared", "none"] = "per_layer",
    attention: bool = True,
    padding_token: int | None = None,
    sequence_length: int = 0,
    vocab_size: int | None = None,
) -> tuple[int, ...]:
    """Check that a student can be distilled from a teacher, and read the layer map.

    Args:
        layer_map: The value of `--layer_map`, or None for a stage that compares predictions alone.
        projection: "none" needs hidden states of equal width.
        attention: Whether attention scores are compared, which needs equal numbers of heads.
        padding_token: What the tokeniser pads with; None takes the teacher's word for it.
        sequence_length: Of the longest rows, which a teacher's sliding windows may not span.
        vocab_size: Entries of the student's vocabulary; None: as many as the teacher's.

    Returns:
        The layer map, see `parse_layer_map`; empty for None.

    Raises:
        ConfigError: All that does not fit, each with what to change, at once.
    """
    problems = []
    parsed: tuple[int, ...] = ()
    wanted, whose = (
        (teacher_config.vocab_size, "the teacher's") if vocab_size is None else (vocab_size, "its tokeniser")
    )
    if student_config.vocab_size != wanted:
        problems.append(
            f'the student\'s vocabulary has {student_config.vocab_size} entries, {whose} {wanted}; set "vocab_size": '
            f"{wanted} in the student's config.json (copy a shipped one first)"
        )
    problems += padding_problems(teacher_config, student_config, padding_token)
    if layer_map is not None:
        teacher, student = _sizes(teacher_config, "teacher", attention), _sizes(student_config, "student", attention)
        if attention and teacher.heads != student.heads:
            problems.append(
                f"the student has {student.heads} attention heads, the teacher {teacher.heads}; attention scores are "
                f'compared head by head: set "num_attention_heads": {teacher.heads} in the student\'s config.json, and '
                f'a "hidden_size" that is a multiple of {teacher.heads}, or {COMPARE_RELATIONS}'
            )
        if projection == "none" and teacher.width != student.width:
            problems.append(
                f"--projection none needs equal widths; the student has hidden_size {student.width}, the teacher "
                f"{teacher.width}: use --projection per_layer or shared"
            )
        try:
            full = full_attention_layers(teacher_config, sequence_length) if attention else None
            parsed = parse_layer_map(layer_map, teacher.layers, student.layers, full)
            _say_what_is_not_uniform(layer_map, parsed, teacher.layers)
        except ConfigError as error:
            problems.append(str(error))
    raise_all(problems)
    return parsed


def _say_what_is_not_uniform(spec: str, layer_map: tuple[int, ...], teacher_layers: int) -> None:
    """Tell which teacher states stand for those that a uniform map would have, where it cannot have them."""
    student_layers = len(layer_map) - 1
    exact = [state * student_layers == i * teacher_layers for i, state in enumerate(layer_map)]
    if spec.strip().lower() == "uniform" and not all(exact):
        logger.info(
            "%d teacher layers for %d student layers: the layer map is %s, the nearest that can be imitated",
            teacher_layers,
            student_layers,
            ",".join(map(str, layer_map)),
        )


def padding_problems(teacher_config: Any, student_config: Any, padding_token: int | None) -> list[str]:
    """Say where a student's embedding of padding, which gets no gradient, would be that of a token which texts have.

    Args:
        teacher_config: Believed where the tokeniser is not known. Its own table is frozen, whatever it says.
        student_config: Of the model that trains.
        padding_token: What the tokeniser pads with, or None.
    """
    own = student_config.pad_token_id
    wanted = teacher_config.pad_token_id if padding_token is None else padding_token
    if None in (own, wanted) or own == wanted:
        return []
    whose = "the teacher's" if padding_token is None else "the tokeniser's"
    return [
        f"the student's padding is token {own}, {whose} {wanted}; set \"pad_token_id\": {wanted} in the student's "
        "config.json"
    ]


class _Sizes(NamedTuple):
    layers: int
    width: int
    heads: int | None


def _sizes(config: Any, role: str, attention: bool) -> _Sizes:
    """What layer-wise distillation compares of a config; not every architecture has all of it."""
    names = ["num_hidden_layers", "hidden_size", *(["num_attention_heads"] if attention else [])]
    missing = [name for name in names if not isinstance(getattr(config, name, None), int)]
    if missing:
        advice = LEAVE_ATTENTION_OUT if missing == ["num_attention_heads"] else "use a text encoder such as BERT"
        raise ConfigError(
            f"the {role}'s config.json (model_type {config.model_type!r}) has no single {' and '.join(missing)}, so "
            f"its layers cannot be compared; {advice}"
        )
    return _Sizes(config.num_hidden_layers, config.hidden_size, config.num_attention_heads if attention else None)


def svd_embeddings(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Start the student's embeddings from the leading singular vectors of the teacher's, in place.

    The word embeddings E (V, H_teacher) are projected to E·B, where the columns of B (H_teacher, H_student) are the
    right singular vectors of the largest singular values: of all tables of that width, the one E is best rebuilt from.
    Position and segment embeddings go through the same B, so that sums of embeddings are projected as a whole.

    Args:
        student: Of the same vocabulary, no wider and with no more positions and segments than the teacher.

    Raises:
        ModelError: Tables that do not fit each other.
    """
    pairs = _embedding_pairs(teacher, student)
    (_, source, target), *_ = pairs
    width = target.shape[1]
    if width > source.shape[1]:
        raise ModelError(
            f"--init svd needs a student whose embeddings ({width}) are no wider than the teacher's "
            f"({source.shape[1]}); use --init random"
        )
    basis = leading_basis(source.double().T @ source.double(), width)
    with torch.no_grad():
        for name, table, own in pairs:
            if own.shape[0] > table.shape[0] or (name == "word" and own.shape[0] != table.shape[0]):
                raise ModelError(
                    f"--init svd: the student has {own.shape[0]} {name} embeddings, the teacher "
                    f"{table.shape[0]}; change the student's config.json or use --init random"
                )
            own.copy_(table[: own.shape[0]].double() @ basis)


def _embedding_pairs(teacher: PreTrainedModel, student: PreTrainedModel) -> Sequence[tuple[str, Tensor, Tensor]]:
    pairs = [("word", teacher.get_input_embeddings().weight, student.get_input_embeddings().weight)]
    for name, attribute in (("position", "position_embeddings"), ("segment", "token_type_embeddings")):
        tables = [getattr(getattr(m.base_model, "embeddings", None), attribute, None) for m in (teacher, student)]
        if tables[0] is not None and tables[1] is not None:
            pairs.append((name, tables[0].weight, tables[1].weight))
    return [(name, source.detach(), target.detach()) for name, source, target in pairs]
