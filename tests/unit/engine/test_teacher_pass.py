"""The teacher one batch ahead of the student: nothing is read too early, and nothing differs from taking turns.

The stream is a stub that does its work only when it is waited for, as a device does.
"""

from __future__ import annotations

import logging
import weakref
from contextlib import contextmanager

import pytest
import torch

from tinybert_ds.engine.loop import Step, optimizer_step, with_following
from tinybert_ds.engine.teacher_pass import TeacherPass, side_stream
from tinybert_ds.engine.watch.monitor import Stopwatch
from tinybert_ds.types import Batch, Counts, EncoderOutput, tensors_of

CPU = torch.device("cpu")


def batch_of(number: int) -> Batch:
    ids = torch.full((1, 2), number)
    return Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), None, torch.tensor([number]), Counts(1.0, 2.0, 4.0))


class LateStream:
    """Does what was started in it when it is waited for, and no sooner."""

    def __init__(self) -> None:
        self.queued = []
        self.working = False
        self.handed_over = []

    @contextmanager
    def work(self):
        """Note that the stream's own context is active."""
        self.working = True
        yield
        self.working = False

    def hand_over(self, tensors):
        """Do all that was started so far."""
        assert not self.working
        for job in self.queued:
            job()
        self.queued.clear()
        self.handed_over += tensors


def late_teacher(stream, log):
    """Return a teacher whose output is NaN until the stream gets to it."""

    def teach(batch):
        assert stream.working
        states = torch.full((1, 2, 3), torch.nan)
        number = int(batch.sample_ids[0])
        log.append(f"teacher starts {number}")
        stream.queued.append(lambda: states.fill_(number))
        return EncoderOutput((states,), (), (), (), None)

    return teach


class Student:
    """An engine whose loss is the mean of the teacher's states."""

    def __init__(self, log) -> None:
        self.log = log
        self.seen = []

    def __call__(self, batch, teacher_output):
        number = int(batch.sample_ids[0])
        self.log.append(f"student works on {number}")
        (states,) = teacher_output.hidden_states
        self.seen.append(states.clone())
        return {"loss": states.mean()}

    def backward(self, loss) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""

    def zero_optimization(self) -> bool:
        """Say that the gradient norm is asked for after the step."""
        return True

    def get_global_grad_norm(self) -> None:
        """Return none: it is not computed."""

    def get_lr(self):
        """Return a learning rate."""
        return [0.1]


def run(teacher_pass, student, steps):
    """Take the steps as the training loop does; return each one's mean loss."""
    stopwatch = Stopwatch(CPU)
    losses = []
    for step in with_following(steps):
        (terms,) = optimizer_step([student], teacher_pass, step, stopwatch, seed=0, rank=0)
        losses.append(float(terms["loss"]))
    return losses


def steps_of(accumulation: int, count: int = 3) -> list[Step]:
    return [
        Step(number, 0, accumulation, [batch_of(number * accumulation + part) for part in range(accumulation)])
        for number in range(count)
    ]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_teacher_that_is_ahead_gives_every_batch_what_it_gives_in_turn(accumulation):
    stream, log = LateStream(), []
    ahead = Student(log)
    losses = run(TeacherPass(late_teacher(stream, log), CPU, stream), ahead, steps_of(accumulation))

    def teach(batch):
        return EncoderOutput((torch.full((1, 2, 3), float(batch.sample_ids[0])),), (), (), (), None)

    in_turn = Student([])
    assert losses == run(TeacherPass(teach, CPU), in_turn, steps_of(accumulation))
    assert all(torch.equal(*pair) for pair in zip(ahead.seen, in_turn.seen, strict=True))


def test_the_next_batch_is_under_way_before_the_student_begins_this_one_and_not_one_more():
    stream, log = LateStream(), []
    run(TeacherPass(late_teacher(stream, log), CPU, stream), Student(log), steps_of(2, count=2))
    assert log == [
        *("teacher starts 0", "teacher starts 1", "student works on 0", "teacher starts 2", "student works on 1"),
        *("teacher starts 3", "student works on 2", "student works on 3"),
    ]


def test_the_teachers_output_is_let_go_before_the_last_student_goes_backward():
    handed_out, held = [], []

    def teach(batch):
        states = torch.ones(1, 2, 3)
        handed_out.append(weakref.ref(states))
        return EncoderOutput((states,), (), (), (), None)

    class Watching(Student):
        def backward(self, loss) -> None:
            held.append(handed_out[-1]() is not None)

    (step,) = steps_of(2, count=1)
    students = [Watching([]), Watching([])]
    optimizer_step(students, TeacherPass(teach, CPU), step, Stopwatch(CPU), seed=0, rank=0)
    assert held == [True, False] * 2
    assert [len(student.seen) for student in students] == [2, 2]


def test_every_tensor_that_crosses_streams_is_handed_over_and_what_comes_next_is_not_waited_for():
    stream, log = LateStream(), []
    teacher_pass = TeacherPass(late_teacher(stream, log), CPU, stream)
    first, second = batch_of(0), batch_of(1)
    lesson = teacher_pass(first, second)
    assert [id(tensor) for tensor in stream.handed_over] == [id(tensor) for tensor in tensors_of(lesson)]
    assert len(stream.handed_over) == 5  # ids, mask, types, sample ids; one state
    assert len(stream.queued) == 1  # the second batch


def test_a_batch_that_was_not_announced_is_a_fault_and_not_taken_for_the_one_that_was():
    stream = LateStream()
    teacher_pass = TeacherPass(late_teacher(stream, []), CPU, stream)
    teacher_pass(batch_of(0), batch_of(1))
    with pytest.raises(AssertionError, match="announced"):
        teacher_pass(batch_of(2), None)


def test_without_a_teacher_there_is_a_batch_and_no_output():
    batch = batch_of(3)
    assert TeacherPass(None, CPU)(batch, None) == (batch, None)


def test_each_step_knows_the_first_micro_batch_of_the_next_and_the_last_knows_none():
    steps = steps_of(2)
    following = [step.following for step in with_following(iter(steps))]
    assert following[0] is steps[1].micro_batches[0]
    assert following[1] is steps[2].micro_batches[0]
    assert following[2] is None


def test_overlap_asked_for_on_a_cpu_says_that_there_is_none(caplog):
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        assert side_stream(CPU) is None
    assert "--overlap_teacher has no effect" in caplog.text


@pytest.mark.gpu
def test_a_teacher_on_a_cuda_stream_of_its_own_gives_what_it_gives_in_turn():
    device = torch.device("cuda")
    weight = torch.randn(2048, 2048, device=device)

    def teach(batch):
        product = weight
        for _ in range(20):  # long enough that a student who does not wait reads something else
            product = torch.tanh(product @ weight)
        return EncoderOutput((product * batch.input_ids[0, 0],), (), (), (), None)

    def sums(*, wanted):
        teacher_pass = TeacherPass(teach, device, side_stream(device) if wanted else None)
        taught = (teacher_pass(step.micro_batches[0], step.following) for step in with_following(steps_of(1, count=5)))
        return [lesson.teacher_output.hidden_states[0].sum().item() for lesson in taught]

    assert sums(wanted=True) == sums(wanted=False)
