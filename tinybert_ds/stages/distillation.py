"""What the two distillation commands share: a teacher and a student that fit, and how they are put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.arguments import DistillationArguments, TrainingArguments
from tinybert_ds.data.tokenizer import TOKENIZER_FILES, load_tokenizer, tokenizer_fingerprint
from tinybert_ds.engine.ranks.process_group import World, write_on_main
from tinybert_ds.engine.student import ENCODER_PREFIX, full_state, state_below
from tinybert_ds.engine.teacher import Teacher, build_teacher
from tinybert_ds.errors import ConfigError
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.losses import choose_relation_heads
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.directory import model_files
from tinybert_ds.models.layer_map import attention_layers
from tinybert_ds.models.probe import captured_width, check_capture
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.models.relation_layers import choose_relation_layers
from tinybert_ds.models.saving import load_projections, save_student
from tinybert_ds.models.student import DistilledStudent, TeacherPart, count_parameters, freeze_unused
from tinybert_ds.models.unread_layers import drop_unread_layers
from tinybert_ds.objective import IntermediateObjective, JointObjective, LossWeights, PredictionObjective, Relations
from tinybert_ds.stages.evaluate import logits_encoder
from tinybert_ds.stages.task_data import TaskData

logger = logging.getLogger(__name__)

_PROJECTION_PREFIX = "objective.projections."


class Student(NamedTuple):
    """A student of intermediate-layer distillation before it meets its teacher."""

    model: PreTrainedModel
    layer_map: tuple[int, ...]  # teacher state for each student state
    directory: Path  # where an earlier stage may have left projections
    token_types: bool = True  # whether the tokeniser that it is exported with returns them
    projections: dict[str, Tensor] | None = None  # of a student that was started from its teacher
    relation_layers: tuple[tuple[int, int], ...] = ()  # its own and the teacher's, from 1; none: scores are compared


def relation_layers(
    arguments: DistillationArguments, layer_map: tuple[int, ...], teacher_config: Any
) -> tuple[tuple[int, int], ...]:
    """Return the pairs (student layer, teacher layer), from 1, whose relations are compared; none where scores are.

    Raises:
        ConfigError: --relation_layers names layers that there are not.
    """
    if not arguments.compares_relations:
        return ()
    return choose_relation_layers(arguments.relation_pairs, layer_map, teacher_config.num_hidden_layers)


def build_intermediate(
    teacher_model: PreTrainedModel,
    students: Sequence[Student],
    arguments: DistillationArguments,
    *,
    max_seq_length: int,
    world: World,
    token_types: bool = True,
    predictions: PredictionObjective | None = None,
) -> tuple[Teacher, list[DistilledStudent]]:
    """Put together the distillation of hidden states and of attention scores or relations.

    Args:
        students: One or several; the teacher keeps what any of them imitates.
        predictions: What is learnt of the predictions in the same steps (`--joint`).
        token_types: Whether the teacher's tokeniser returns them.

    Returns:
        The teacher, and the students' modules, ready for their engines.
    """
    weights = LossWeights(**arguments.loss_weights)
    imitated = [_imitated(student, weights) for student in students]
    teacher = CapturingEncoder(
        teacher_model,
        states=sorted({state for states, _ in imitated for state in states}),
        attention_layers=sorted({layer for _, layers in imitated for layer in layers}),
        logits=predictions is not None,
        token_types=token_types,
        relations=_compared(arguments),
    )
    if teacher.family is not None and teacher.attention_layers:
        logger.info("the teacher's queries, keys and values are read behind its projections")
    check_capture(teacher, sequence_length=max_seq_length)
    modules = [
        _student_module(teacher, student, arguments, weights, max_seq_length, predictions) for student in students
    ]
    dtype = inference_dtype(world.device, arguments.teacher_dtype)
    logger.info("teacher %.2f M parameters, in %s", count_parameters(teacher_model) / 1e6, dtype)
    drop_unread_layers(teacher)
    for module in modules:
        prepare_encoder(module.encoder, arguments, world)
    if arguments.compile:
        compile_encoders((teacher,), world.device)
    return build_teacher(teacher, dtype, arguments.teacher_engine), modules


def prepare_encoder(encoder: CapturingEncoder, arguments: TrainingArguments, world: World) -> None:
    """Let a student's encoder be recomputed and compiled where the command line says so."""
    if arguments.gradient_checkpointing:
        recompute_layers(encoder, world.device)
    if arguments.compile:
        compile_encoders((encoder,), world.device)


def classifying_student(
    model: PreTrainedModel, objective: PredictionObjective, arguments: TrainingArguments, task: TaskData
) -> DistilledStudent:
    """Return the module that trains all of a classifier that its logits depend on."""
    encoder = logits_encoder(model, task)
    freeze_unused(encoder)
    prepare_encoder(encoder, arguments, task.world)
    return DistilledStudent(encoder, objective)


def _imitated(student: Student, weights: LossWeights) -> tuple[list[int], list[int]]:
    """Return the teacher's states and attention layers that a student imitates, in the order of its own."""
    num_layers, layer_map = len(student.layer_map) - 1, student.layer_map
    states = [layer_map[state] for state in weights.states(num_layers)]
    if student.relation_layers:
        return states, [teacher - 1 for _, teacher in student.relation_layers]
    layers = attention_layers(layer_map)
    return states, [layers[layer] for layer in weights.attention_layers(num_layers)]


def _compared(arguments: DistillationArguments) -> list[str]:
    """Return of which vectors relations are compared; of none where attention scores are."""
    if not arguments.compares_relations:
        return []
    return [kind for kind, factor in arguments.relation_factors.items() if factor]


def _relations(
    teacher: CapturingEncoder, encoder: CapturingEncoder, student: Student, arguments: DistillationArguments
) -> Relations | None:
    """Return what is compared in the place of attention scores, None where these are.

    Raises:
        ConfigError: --relation_heads does not divide the widths of both models.
    """
    if not student.relation_layers:
        return None
    heads = choose_relation_heads(captured_width(encoder), captured_width(teacher), arguments.relation_heads)
    pairs = ", ".join(f"{own}:{theirs}" for own, theirs in student.relation_layers)
    logger.info("relations of student:teacher layers %s in %d heads", pairs, heads)
    return Relations(
        layers=encoder.attention_layers,
        heads=heads,
        form="kl" if arguments.attention_loss == "relations_kl" else "scores",
        **arguments.relation_factors,
    )


def _student_module(
    teacher: CapturingEncoder,
    student: Student,
    arguments: DistillationArguments,
    weights: LossWeights,
    max_seq_length: int,
    predictions: PredictionObjective | None,
) -> DistilledStudent:
    num_layers = len(student.layer_map) - 1
    own_layers = tuple(own - 1 for own, _ in student.relation_layers) or weights.attention_layers(num_layers)
    encoder = CapturingEncoder(
        student.model,
        states=weights.states(num_layers),
        attention_layers=own_layers,
        logits=predictions is not None,
        token_types=student.token_types,
        relations=_compared(arguments),
    )
    check_capture(encoder, sequence_length=max_seq_length)
    frozen = freeze_unused(encoder)
    torch.manual_seed(arguments.seed)
    objective_of = IntermediateObjective if predictions is None else partial(JointObjective, predictions=predictions)
    objective = objective_of(
        num_layers,
        student.model.config.hidden_size,
        teacher.model.config.hidden_size,
        projection=arguments.projection,
        padding=arguments.padding,
        weights=weights,
        relations=_relations(teacher, encoder, student, arguments),
    )
    logger.info(
        "student %.2f M parameters, layer map %s", count_parameters(student.model) / 1e6, list(student.layer_map)
    )
    if frozen:
        logger.info("not trained in this stage: %s", ", ".join(frozen))
    _take_projections(objective, student)
    part = TeacherPart.of(teacher, *_imitated(student, weights))
    return DistilledStudent(encoder, objective, part)


def export_student(engine: Any, directory: Path, *, tokenizer: Any, world: World) -> None:
    """Write the engine's student as a Hugging Face directory, with its projections; called on all ranks."""
    state = full_state(engine)
    model_state = state_below(state, ENCODER_PREFIX)
    projections = state_below(state, _PROJECTION_PREFIX) or None
    model = engine.module.encoder.model

    def save() -> None:
        save_student(model, tokenizer, directory, state_dict=model_state, projections=projections)

    write_on_main(world, directory, save)


def require_same_tokenizer(student: Path, teacher: str, lower_case: bool | None) -> None:
    """Refuse a trained student with a tokeniser of its own that is not the one of a directory.

    Raises:
        ConfigError: The two read texts differently.
    """
    files = model_files(student)
    if not any((files / name).is_file() for name in TOKENIZER_FILES):
        return
    own, other = (load_tokenizer(directory, lower_case) for directory in (student, teacher))
    if tokenizer_fingerprint(own) != tokenizer_fingerprint(other):
        raise ConfigError(
            f"the tokenisers of {student} and {teacher} differ (vocabulary or casing); a student must read what its "
            "teacher reads: use the teacher's tokeniser files, or say the casing with --do_lower_case or "
            "--no_lower_case"
        )


def _take_projections(objective: IntermediateObjective, student: Student) -> None:
    directory = student.directory
    found = student.projections or (load_projections(directory) if directory.is_dir() else None)
    own = objective.projections.state_dict()
    if not own:
        return
    if found is None:
        logger.info("projections start fresh")
        return
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != {name: tuple(value.shape) for name, value in own.items()}:
        whose = "of the student's start" if student.projections else f"in {directory}"
        logger.warning("projections %s do not fit this teacher, student or --projection; starting fresh", whose)
        return
    objective.projections.load_state_dict(found)
    logger.info("projections taken over from %s", "the student's start" if student.projections else directory)
