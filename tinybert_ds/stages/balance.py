"""`--loss_balance variance`: each loss term in parts of the teacher's own variance of that tensor."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.calibration import calibration_blocks
from tinybert_ds.engine.ranks.process_group import run_on_main
from tinybert_ds.engine.run.run import Run
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.errors import CheckpointError, DataError
from tinybert_ds.losses.relation_heads import split_relation_heads
from tinybert_ds.losses.variances import Moments, score_moments, state_moments
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import IntermediateObjective
from tinybert_ds.types import Batch, EncoderOutput, move

logger = logging.getLogger(__name__)

MEASURED_TOKENS = 16_384
"""Of the text, on which the teacher's variances are measured."""
RECORDED = "loss_variances"
"""In run.json: a student's loss terms and what each is divided by."""

Variances = dict[str, float]


def balance(
    run: Run, teacher: Teacher, students: Sequence[DistilledStudent], source: BatchSource, *, token_types: bool
) -> list[Variances | None]:
    """Divide each term of the students' losses by the teacher's variance of its tensor, where the command line says so.

    A run that goes on keeps the variances that it began with. Called on all ranks, before the students are attached.

    Args:
        source: Of the training text.
        token_types: Whether the teacher's tokeniser returns them.

    Returns:
        What run.json is to hold of each student; None where nothing is divided.

    Raises:
        CheckpointError: run.json has variances that are not those of this run's losses.
        DataError: The teacher says the same of every token, so that there is nothing to divide by.
    """
    if run.arguments.loss_balance == "none":
        return [None] * len(students)
    before = run.recorded(RECORDED)
    found = [kept for kept in before if kept is not None]
    if len(found) < len(students):
        blocks = calibration_blocks(source, MEASURED_TOKENS, token_types=token_types)
        measured = measure_variances(teacher, students, blocks, run.world.device)
        found = run_on_main(run.world, lambda: measured)  # what is measured on different hosts may differ in a bit
        logger.info("each loss is divided by the teacher's variance of what it compares: %s", _shown(found[0]))
    for student, variances in zip(students, found, strict=True):
        objective = _objective(student)
        if set(variances) != set(objective.term_names):
            raise CheckpointError(
                f"{RECORDED} in run.json are of {', '.join(sorted(variances))}, and the losses of this run are "
                f"{', '.join(objective.term_names)}; remove the directory to start anew, or give another one"
            )
        objective.variances = dict(variances)
    return list(found)


def recorded(variances: Variances | None) -> dict[str, Variances]:
    """Return what run.json is to hold of a student's variances."""
    return {} if variances is None else {RECORDED: variances}


def measure_variances(
    teacher: Teacher, students: Sequence[DistilledStudent], blocks: Sequence[Batch], device: torch.device
) -> list[Variances]:
    """Return for each student the teacher's variance of every tensor that a term of its loss compares.

    Raises:
        DataError: One of them is 0.
    """
    totals: list[dict[str, Moments]] = [{} for _ in students]
    for block in blocks:
        batch = move(block, device)
        output = teacher(batch)
        for student, total in zip(students, totals, strict=True):
            own = output if student.teacher_part is None else student.teacher_part.read(output)
            for name, moments in _moments(_objective(student), own, batch).items():
                total[name] = total[name] + moments if name in total else moments
    found = []
    for student, total in zip(students, totals, strict=True):
        variances = {name: total[name].variance if name in total else 1.0 for name in _objective(student).term_names}
        if flat := [name for name, variance in variances.items() if not variance > 0]:
            raise DataError(
                f"--loss_balance variance: the teacher's tensors of {', '.join(flat)} do not vary over the text; "
                "give more text, or --loss_balance none"
            )
        found.append(variances)
    return found


def _moments(objective: IntermediateObjective, teacher: EncoderOutput, batch: Batch) -> dict[str, Moments]:
    """Return the moments of what each term compares; divergences (relations by KL) have no units and none."""
    mask, relations = batch.attention_mask, objective.relations
    attention, hidden = objective.attention_names, objective.hidden_names
    found = {name: state_moments(states, mask) for name, states in zip(hidden, teacher.hidden_states, strict=True)}
    layers = zip(attention, teacher.queries, teacher.keys, teacher.scalings, strict=True)
    if relations is None:
        return found | {name: score_moments(query, key, mask, scaling) for name, query, key, scaling in layers}
    if relations.form == "scores":
        for place, name in enumerate(attention):
            for states in (teacher.queries[place], teacher.keys[place], teacher.values[place]):
                cut = split_relation_heads(states, relations.heads)
                moments = score_moments(cut, cut, mask, cut.shape[3] ** -0.5)
                found[name] = found[name] + moments if name in found else moments
    return found


def _objective(student: DistilledStudent) -> IntermediateObjective:
    assert isinstance(student.objective, IntermediateObjective)
    return student.objective


def _shown(variances: Variances) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in variances.items())
