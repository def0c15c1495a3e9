"""One pass over the teacher from its first layer to its last, by which all students' layers are fitted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transformers import PreTrainedModel

from tinybert_ds.models.inherit.fit import (
    LayerReport,
    Task,
    advance,
    fit_layer,
    fit_projection,
    run_last_layer,
    state_sums,
)
from tinybert_ds.models.inherit.heads import fit_head
from tinybert_ds.models.inherit.layers import run_layer
from tinybert_ds.models.inherit.sums import LinearMap, Sums, with_one


class Pupil(NamedTuple):
    """A student that is to be started.

    Args:
        student: In float32, on the teacher's device, in eval mode; its weights do not matter without `prior_weight`.
        layer_map: The teacher's state for each state of the student.
        columns: For classifiers, the teacher's output for each of the student's; None: in the same order.
        prior_weight: How strongly a student that has been distilled keeps what it has learnt: the ridge, in relation
            to the features' mean variance, with which the fits hold on to its weights. It stays in its own
            coordinates and keeps its embeddings and neurons, its head is fitted anew. 0 forgets, 1 hardly moves.
    """

    student: PreTrainedModel
    layer_map: tuple[int, ...]
    columns: Sequence[int] | None = None
    prior_weight: float | None = None


@dataclass
class Found:
    """What is known of a student so far: of the states and layers that are fitted."""

    maps: list[LinearMap] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    reports: list[LayerReport] = field(default_factory=list)
    head: float | None = None
    entered: Sums = field(default_factory=dict)  # of the state that goes into the next layer

    @property
    def layer(self) -> int:
        """The layer that comes next, from 0."""
        return len(self.reports)


def fit_all(teacher: PreTrainedModel, pupils: Sequence[Pupil], tasks: Sequence[Task]) -> list[Found]:
    """Fit all layers and heads; the first states of all models are kept by then.

    The teacher stops behind the last layer of every group of layers that some student has a layer for. There those
    students' layers are fitted, which leaves them with the states that their next layers are fitted on.
    """
    found = [Found() for _ in tasks]
    begin = 0
    for end in sorted({depth for task in tasks for depth in task.layer_map[1:]}):
        shared = _advance_teacher(tasks, found, begin, end)
        for pupil, task, own in zip(pupils, tasks, found, strict=True):
            if own.layer < len(task.student_layers) and task.layer_map[own.layer + 1] == end:
                _fit(teacher, pupil, task, own, shared)
        begin = end
    return found


def _advance_teacher(tasks: Sequence[Task], found: Sequence[Found], begin: int, end: int) -> Sums:
    """Run the teacher from a state to another, and note what the layers that end there are fitted from.

    Students whose layer begins at the first state are taken to it, and its sums noted. Returns what is known of the
    teacher's last layer, and of its products with the states of each student.
    """
    blocks, layers = tasks[0].blocks, tasks[0].teacher_layers
    *lower, last = layers[begin:end]
    under_way = [(task, own) for task, own in zip(tasks, found, strict=True) if own.layer < len(task.student_layers)]
    entering = [(task, own) for task, own in under_way if task.layer_map[own.layer] == begin]
    leaving = [task for task, own in under_way if task.layer_map[own.layer + 1] == end]

    def measure(number: int) -> Sums:
        mask, state = blocks.mask(number), blocks.kept(number, "teacher")
        sums: Sums = {}
        for task, own in entering:
            entered = state_sums(advance(task, own.layer, number), state)
            sums |= {f"{task.kept} {name}": value for name, value in entered.items()}
        for one in lower:
            state = run_layer(one, state, mask)
        for task in leaving:
            student = blocks.kept(number, task.kept)
            sums[f"{task.kept} products"] = with_one(student).T @ with_one(state)
        return sums | run_last_layer(blocks, number, last, state)

    sums = blocks.sum(measure)
    for task, own in entering:
        own.entered = _of(task, sums)
    return sums


def _fit(teacher: PreTrainedModel, pupil: Pupil, task: Task, own: Found, shared: Sums) -> None:
    """Fit a student's layer whose group the teacher has just been through; behind the last one its head as well."""
    fitted, share = fit_projection(task, own.entered)
    own.maps.append(fitted)
    own.shares.append(share)
    own.reports.append(fit_layer(task, own.layer, {**shared, **own.entered, **_of(task, shared)}))
    if own.layer < len(task.student_layers):
        return

    def measure(number: int) -> Sums:
        return state_sums(advance(task, own.layer, number), task.blocks.kept(number, "teacher"))

    fitted, share = fit_projection(task, task.blocks.sum(measure))
    own.maps.append(fitted)
    own.shares.append(share)
    own.head = fit_head(task, teacher, pupil.student, pupil.columns)


def _of(task: Task, sums: Sums) -> Sums:
    """Return the sums of one student by their own names."""
    start = f"{task.kept} "
    return {name.removeprefix(start): value for name, value in sums.items() if name.startswith(start)}
