"""What the two distillation commands share: a teacher and a student that fit, and how they are put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.arguments import DistillationArguments
from tinybert_ds.engine.ranks.process_group import World, write_on_main
from tinybert_ds.engine.student import full_state
from tinybert_ds.engine.teacher import Teacher, build_teacher, teacher_dtype
from tinybert_ds.errors import ConfigError
from tinybert_ds.models.build import svd_embeddings
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.layer_map import attention_layers
from tinybert_ds.models.probe import check_capture
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.models.saving import load_projections, save_student
from tinybert_ds.models.student import DistilledStudent, TeacherPart, count_parameters, freeze_unused
from tinybert_ds.models.unread_layers import drop_unread_layers
from tinybert_ds.objective import IntermediateObjective, LossWeights

logger = logging.getLogger(__name__)

_ENCODER_PREFIX = "encoder.model."
_PROJECTION_PREFIX = "objective.projections."


class Student(NamedTuple):
    """A student of intermediate-layer distillation before it meets its teacher."""

    model: PreTrainedModel
    layer_map: tuple[int, ...]  # teacher state for each student state
    directory: Path  # where an earlier stage may have left projections
    embeddings_from_teacher: bool = False  # start them from the teacher's (`--init_embeddings svd`)


class Distillation(NamedTuple):
    """Student modules and their teacher, ready for their engines."""

    modules: list[DistilledStudent]
    teacher: Teacher


def build_intermediate(
    teacher_model: PreTrainedModel,
    students: Sequence[Student],
    arguments: DistillationArguments,
    *,
    max_seq_length: int,
    world: World,
) -> Distillation:
    """Put together the distillation of hidden states and attention scores.

    Args:
        teacher_model: From `load_*`.
        students: One or several; the teacher keeps what any of them imitates.
        arguments: Padding, projection, precision, seed.
        max_seq_length: Longest sequence of the run.
        world: Where the teacher runs.
    """
    weights = LossWeights(**arguments.loss_weights)
    imitated = [_imitated(student, weights) for student in students]
    teacher = CapturingEncoder(
        teacher_model,
        states=sorted({state for states, _ in imitated for state in states}),
        attention_layers=sorted({layer for _, layers in imitated for layer in layers}),
        logits=False,
    )
    check_capture(teacher, sequence_length=max_seq_length)
    modules = [_student_module(teacher, student, arguments, weights, max_seq_length) for student in students]
    dtype = teacher_dtype(arguments.teacher_dtype, world.device)
    logger.info("teacher %.2f M parameters, in %s", count_parameters(teacher_model) / 1e6, dtype)
    drop_unread_layers(teacher)
    for module in modules:
        recompute_layers(module.encoder, world.device, wanted=arguments.gradient_checkpointing)
    compile_encoders((teacher, *(module.encoder for module in modules)), world.device, wanted=arguments.compile)
    return Distillation(modules, build_teacher(teacher, dtype, arguments.teacher_engine))


def _imitated(student: Student, weights: LossWeights) -> tuple[list[int], list[int]]:
    """Return the teacher's states and attention layers that a student imitates, in the order of its own."""
    num_layers, layer_map = len(student.layer_map) - 1, student.layer_map
    layers = attention_layers(layer_map)
    return (
        [layer_map[state] for state in weights.states(num_layers)],
        [layers[layer] for layer in weights.attention_layers(num_layers)],
    )


def _student_module(
    teacher: CapturingEncoder,
    student: Student,
    arguments: DistillationArguments,
    weights: LossWeights,
    max_seq_length: int,
) -> DistilledStudent:
    num_layers = len(student.layer_map) - 1
    encoder = CapturingEncoder(
        student.model,
        states=weights.states(num_layers),
        attention_layers=weights.attention_layers(num_layers),
        logits=False,
    )
    check_capture(encoder, sequence_length=max_seq_length)
    if student.embeddings_from_teacher:
        svd_embeddings(teacher.model, student.model)
    frozen = freeze_unused(encoder)
    torch.manual_seed(arguments.seed)
    objective = IntermediateObjective(
        num_layers,
        student.model.config.hidden_size,
        teacher.model.config.hidden_size,
        projection=arguments.projection,
        padding=arguments.padding,
        weights=weights,
    )
    logger.info(
        "student %.2f M parameters, layer map %s", count_parameters(student.model) / 1e6, list(student.layer_map)
    )
    if frozen:
        logger.info("not trained in this stage: %s", ", ".join(frozen))
    _take_projections(objective, student.directory)
    part = TeacherPart.of(teacher, *_imitated(student, weights))
    return DistilledStudent(encoder, objective, part)


def export_student(engine: Any, directory: Path, *, tokenizer: Any, world: World) -> None:
    """Write the engine's student as a Hugging Face directory, with its projections; called on all ranks."""
    state = full_state(engine)
    model_state = _with_prefix(state, _ENCODER_PREFIX)
    projections = _with_prefix(state, _PROJECTION_PREFIX) or None
    model = engine.module.encoder.model

    def save() -> None:
        save_student(model, tokenizer, directory, state_dict=model_state, projections=projections)

    write_on_main(world, directory, save)


def require_same_tokenizer(student: str, student_fingerprint: str, teacher: str, teacher_fingerprint: str) -> None:
    """Refuse a student and a teacher that read texts differently."""
    if student_fingerprint != teacher_fingerprint:
        raise ConfigError(
            f"the tokenisers of {student} and {teacher} differ (vocabulary or casing); a student must read what its "
            "teacher reads: use the teacher's tokeniser files, or say the casing with --do_lower_case or "
            "--no_lower_case"
        )


def _take_projections(objective: IntermediateObjective, directory: Path) -> None:
    found = load_projections(directory) if directory.is_dir() else None
    own = objective.projections.state_dict()
    if not own:
        return
    if found is None:
        logger.info("projections start fresh")
        return
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != {name: tuple(value.shape) for name, value in own.items()}:
        logger.warning("projections in %s do not fit this teacher, student or --projection; starting fresh", directory)
        return
    objective.projections.load_state_dict(found)
    logger.info("projections taken over from %s", directory)


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
