"""What the two distillation commands share: a teacher and a student that fit, and how they are put together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.arguments import DistillationArguments
from tinybert_ds.engine.distributed import World, run_on_main
from tinybert_ds.engine.student import full_state
from tinybert_ds.engine.teacher import Teacher, build_teacher, teacher_dtype
from tinybert_ds.errors import ConfigError
from tinybert_ds.models.build import svd_embeddings
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.layer_map import attention_layers
from tinybert_ds.models.probe import check_capture
from tinybert_ds.models.saving import load_projections, save_student
from tinybert_ds.models.student import DistilledStudent, count_parameters, freeze_unused
from tinybert_ds.objective import IntermediateObjective, LossWeights

logger = logging.getLogger(__name__)

_ENCODER_PREFIX = "encoder.model."
_PROJECTION_PREFIX = "objective.projections."


class Distillation(NamedTuple):
    """A student module and its teacher, ready for their engines."""

    module: DistilledStudent
    teacher: Teacher


def build_intermediate(
    teacher_model: PreTrainedModel,
    student_model: PreTrainedModel,
    layer_map: tuple[int, ...],
    arguments: DistillationArguments,
    *,
    student_directory: Path,
    max_seq_length: int,
    world: World,
    embeddings_from_teacher: bool = False,
) -> Distillation:
    """Put together the distillation of hidden states and attention scores.

    Args:
        teacher_model, student_model: From `load_*` or `build_student`.
        layer_map: Teacher state for each student state.
        arguments: Padding, projection, precision, seed.
        student_directory: Where an earlier stage may have left projections.
        max_seq_length: Longest sequence of the run.
        world: Where the teacher runs.
        embeddings_from_teacher: Start the student's embeddings from the teacher's (`--init_embeddings svd`).
    """
    num_layers = len(layer_map) - 1
    weights = LossWeights(**arguments.loss_weights)
    states, layers = weights.states(num_layers), weights.attention_layers(num_layers)
    teacher = CapturingEncoder(
        teacher_model,
        states=[layer_map[state] for state in states],
        attention_layers=[attention_layers(layer_map)[layer] for layer in layers],
        logits=False,
    )
    student = CapturingEncoder(student_model, states=states, attention_layers=layers, logits=False)
    for encoder in (teacher, student):
        check_capture(encoder, sequence_length=max_seq_length)
    if embeddings_from_teacher:
        svd_embeddings(teacher_model, student_model)
    frozen = freeze_unused(student)
    torch.manual_seed(arguments.seed)
    objective = IntermediateObjective(
        num_layers,
        student_model.config.hidden_size,
        teacher_model.config.hidden_size,
        projection=arguments.projection,
        padding=arguments.padding,
        weights=weights,
    )
    _take_projections(objective, student_directory)
    _describe(teacher_model, student_model, frozen)
    dtype = teacher_dtype(arguments.teacher_dtype, world.device)
    logger.info("layer map %s; teacher in %s", list(layer_map), dtype)
    compile_encoders((teacher, student), world.device, wanted=arguments.compile)
    return Distillation(DistilledStudent(student, objective), build_teacher(teacher, dtype))


def export_student(engine: Any, tokenizer: Any, directory: Path, world: World) -> None:
    """Write the engine's student as a Hugging Face directory, with its projections; called on all ranks."""
    state = full_state(engine)
    model_state = _with_prefix(state, _ENCODER_PREFIX)
    projections = _with_prefix(state, _PROJECTION_PREFIX) or None
    model = engine.module.encoder.model
    run_on_main(
        world, lambda: save_student(model, tokenizer, directory, state_dict=model_state, projections=projections)
    )


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


def _describe(teacher: PreTrainedModel, student: PreTrainedModel, frozen: tuple[str, ...]) -> None:
    sizes = count_parameters(teacher), count_parameters(student)
    logger.info("teacher %.2f M parameters, student %.2f M", sizes[0] / 1e6, sizes[1] / 1e6)
    if frozen:
        logger.info("not trained in this stage: %s", ", ".join(frozen))
