"""A step on an H100, counted without one: launches, bytes, multiply-adds, waits, and the time that they allow.

    python tests/benchmarks/count_step.py [--cases 256x128 ...] [--readme SECTION]

A 12-layer teacher of width 768 in fp16 and the 4L_312 student in bf16 under ZeRO 2 on one rank, dropout 0.1, padded
rows, on a step that is not logged. Teacher, student, losses and backward run at full size on tensors without data
(`launch_counter`), where whatever waits for the device fails. What DeepSpeed adds (hooks, norm, clipping, AdamW) is
counted in a real engine of narrow models on the CPU: launches do not depend on the width; its bytes are those of the
student's parameters. "launched one by one" is `--cuda_graphs off`, "recorded" a replay. "busy ms" is the time if each
launch takes what its bytes or products take, two microseconds at least; "host ms" is that of the launches at
`HOST_SECONDS` each. "hidden loss in chunks" is a step without the Triton kernel of that loss, "PyTorch's layers" one
without `models.cuda_layers`. "before" stands for the
code before any of this, which cannot be counted so: what a review of it estimated, `BEFORE`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import bench_step, step_cases
from tests.benchmarks.launch_counter import CountingRecorder, LaunchCounter, Tally, counting
from tests.benchmarks.measurement import replace_section
from tinybert_ds.engine.graphs import RecordedStudent, RecordedTeacher
from tinybert_ds.engine.student import build_engine
from tinybert_ds.losses import gradients_only, triton_hidden
from tinybert_ds.models import cuda_layers
from tinybert_ds.models.build import STUDENTS_DIR
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.cuda_layers import use_cuda_layers
from tinybert_ds.models.layer_map import attention_layers
from tinybert_ds.models.student import DistilledStudent, count_parameters, freeze_unused
from tinybert_ds.objective import IntermediateObjective
from tinybert_ds.types import Batch, Counts, move

HOST_SECONDS = 10e-6
"""Of Python and PyTorch for one launch, on a processor of such a machine; 20 on a slow one."""
LIMIT_FLOPS = 800e12
"""What large products of an H100 reach: the limit that shares are of."""
LAYER_MAP = tuple(range(0, 13, 3))


class Case(NamedTuple):
    """Rows of a length, and how many students learn from them."""

    rows: int
    length: int
    students: int = 1


CASES = {
    "256x128": Case(256, 128),
    "64x512": Case(64, 512),
    "32x64 (task)": Case(32, 64),
    "256x128, two students": Case(256, 128, students=2),
}


BEFORE = {
    "256x128": "2,050 | | 6.9 | 10 | 33 | 48 | 4,000 to 4,500 | 14%",
    "32x64 (task)": " | | | 10 | 3 | 45 | |",
}
"""Estimates of the review of commit 0546a1f, made by hand: launches by counting what was dispatched, host time measured
on a CPU. Its step had no graphs, waited for the device, and kept the scores of padded rows."""


class Counted(NamedTuple):
    """A step by its parts."""

    teacher: Tally
    student: Tally  # forward and losses, of one
    backward: Tally
    engine: Tally  # DeepSpeed's part of backward and step

    def total(self, students: int) -> Tally:
        """Return the sum over the parts, with so many students."""
        parts = [self.teacher, *(self.student, self.backward, self.engine) * students]
        return Tally(
            *(sum(getattr(part, name) for part in parts) for name in ("launches", "bytes", "flops", "seconds"))
        )


def padded_batch(rows: int, length: int) -> Batch:
    """Return a batch without data, some of whose rows are padded."""
    ids = torch.zeros(rows, length, dtype=torch.int64)
    counts = Counts(rows, rows * length * 0.98, rows * length**2 * 0.97)
    batch = Batch(ids, ids, ids, None, torch.zeros(rows, dtype=torch.int64), counts)
    return move(batch, torch.device("meta"))


def configs(width_divisor: int = 1) -> tuple[BertConfig, BertConfig]:
    """Return the configs of teacher and student; a divisor makes both narrow."""
    student = BertConfig.from_json_file(STUDENTS_DIR / "4L_312.json")
    sizes = ((768, 3072, 12), (student.hidden_size, student.intermediate_size, student.num_hidden_layers))
    vocabulary = {"vocab_size": student.vocab_size // width_divisor}
    return tuple(
        BertConfig(
            hidden_size=12 * max(1, width // 12 // width_divisor),
            intermediate_size=intermediate // width_divisor,
            num_hidden_layers=layers,
            num_attention_heads=12,
            **vocabulary,
        )
        for width, intermediate, layers in sizes
    )  # type: ignore[return-value]


def modules(
    teacher_config: BertConfig, student_config: BertConfig, device: str = "cpu"
) -> tuple[CapturingEncoder, DistilledStudent]:
    """Return the teacher's encoder and the student with its objective, in training."""
    depth = student_config.num_hidden_layers
    widths = student_config.hidden_size, teacher_config.hidden_size
    with torch.device(device):
        models = BertModel(teacher_config).eval(), BertModel(student_config)
        objective = IntermediateObjective(depth, *widths, projection="per_layer", padding="valid")
    layers = attention_layers(LAYER_MAP)
    teacher = CapturingEncoder(models[0], states=LAYER_MAP, attention_layers=layers, logits=False)
    student = CapturingEncoder(models[1], states=range(depth + 1), attention_layers=range(depth), logits=False)
    freeze_unused(student)
    return teacher, DistilledStudent(student, objective).train()


def count_models(
    case: Case, teacher: CapturingEncoder, student: DistilledStudent, *, recorded: bool
) -> dict[str, Tally]:
    """Count the models' part of a step; they have no data. Recorded, it is the third of the shape, a replay."""
    counter = LaunchCounter()
    asked: Any = teacher
    if recorded:
        asked = RecordedTeacher(teacher, CountingRecorder(counter))
        student.runner = RecordedStudent(student, CountingRecorder(counter), teacher=asked)
    with counting(counter), gradients_only():
        batch = padded_batch(case.rows, case.length)
        for model in (teacher, student):
            use_cuda_layers(model, batch.input_ids.device)
        for _ in range(3 if recorded else 1):
            counter.tallies.clear()
            student.teacher_check = None
            with torch.no_grad():
                counter.part("teacher")
                lesson = asked(batch)
            counter.part("student")
            loss = student(batch, lesson)["loss"]
            counter.part("backward")
            loss.backward()
            student.zero_grad(set_to_none=True)
    return counter.tallies


def count_engine(config: str = "zero2_bf16.json") -> Tally:
    """Count what DeepSpeed adds to a backward, and its step, in an engine of narrow models on the CPU."""
    world = bench_step.joined_world()
    case = step_cases.Case("count", 2, 1, 8, 8)
    launches = []
    for in_engine in (False, True):
        torch.manual_seed(0)
        teacher, student = modules(*configs(width_divisor=24))
        engine: Any = None
        if in_engine:
            ds_config = bench_step.deepspeed_config(case, config, world)
            how = {"weight_decay": 0.01, "total_steps": 10, "warmup": 0.0, "schedule": "constant"}
            engine = build_engine(student, ds_config, **how)
        dtype = next(student.parameters()).dtype
        batch = next(step_cases.batches_of(case, bins=True))
        batch = batch._replace(input_ids=batch.input_ids % 100)
        with torch.no_grad():
            lesson = teacher.to(dtype)(batch)
        for _ in range(2):  # the first one makes the optimizer's states
            loss = (engine or student)(batch, lesson)["loss"]
            with LaunchCounter() as counter:
                if engine is None:
                    loss.backward()
                else:
                    engine.backward(loss)
                    engine.step()
            student.zero_grad(set_to_none=True)
        launches.append(counter.tally.launches)
    return Tally(launches=launches[1] - launches[0])


def count(case: Case, engine: Tally, *, recorded: bool) -> Counted:
    """Count a step of a case, launched one by one or replayed; `engine` is `count_engine`'s."""
    teacher, student = modules(*configs(), device="meta")
    parameters = count_parameters(student)
    tallies = count_models(case, teacher.half(), student.bfloat16(), recorded=recorded)
    own = Tally()
    own.add(engine.launches, parameters * (3 * 4 * 2 + 2 * 2 * 3))  # masters and moments, gradients and copies
    return Counted(tallies["teacher"], tallies["student"], tallies["backward"], own)


@contextmanager
def hidden_loss_in_chunks() -> Iterator[None]:
    """Let the Triton kernel of the hidden loss take nothing inside the context."""
    with mock.patch.object(triton_hidden, "refusal", return_value="left out to count the other form"):
        yield


@contextmanager
def layers_of_pytorch() -> Iterator[None]:
    """Let layers stay PyTorch's inside the context."""
    with mock.patch.object(cuda_layers, "on_cuda", return_value=False):
        yield


def line(name: str, case: Case, counted: Counted) -> str:
    """Return a row of the table."""
    total = counted.total(case.students)
    busy, host = total.seconds, total.launches * HOST_SECONDS
    speed = case.rows / max(busy, host)
    limit = case.rows / (total.flops / LIMIT_FLOPS)
    parts = " + ".join(str(part.launches) for part in counted)
    # What would wait for the device cannot be counted: it fails, as tensors without data have nothing to read.
    return (
        f"| {name} | {total.launches:,} ({parts}) | {total.bytes / 1e9:.1f} | {total.flops / 1e12:.2f} | 0 | "
        f"{busy * 1e3:.1f} | {host * 1e3:.1f} | {speed:,.0f} | {speed / limit:.0%} |"
    )


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Count a step on an H100 without one.", allow_abbrev=False)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of the README")
    values = parser.parse_args(arguments)
    engine = count_engine()
    lines = [
        "| step | launches (teacher + student + backward + DeepSpeed) | GB moved | TFLOP | waits | busy ms | host ms | "
        "sequences/s | share of the limit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in values.cases:
        case = CASES[name]
        if name in BEFORE:
            lines.append(f"| {name}, before (estimated by a review) | {BEFORE[name]} |")
        for form, context in {
            "hidden loss in chunks": hidden_loss_in_chunks(),
            "PyTorch's layers": layers_of_pytorch(),
        }.items():
            with context:
                lines.append(line(f"{name}, recorded, {form}", case, count(case, engine, recorded=True)))
        for recorded in (False, True):
            what = f"{name}, {'recorded' if recorded else 'launched one by one'}"
            lines.append(line(what, case, count(case, engine, recorded=recorded)))
            print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    if values.readme:
        replace_section(values.readme, table)
    return table


if __name__ == "__main__":
    main()
