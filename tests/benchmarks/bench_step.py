"""A step of general distillation against the published classes: both forwards, losses, backward and optimizer.

    python tests/benchmarks/bench_step.py [--original PATH] [--rounds 5] [--dtypes fp32 bf16] [--cases full_128 ...]

A 12-layer teacher of width 768 and the 4L_312 student, random weights, the same on both sides, as are batches, AdamW
and clipping. Ours runs through the engines and the loop's own step; the peers are the classes of a checkout of the
published implementation (--original), or their form written anew around transformers' layers. Writes results/step.csv
and prints a table. Cases "mixed_..." take samples of many lengths: ours through the length bins, the peers padded
to the longest.

On a GPU the cases are those called "gpu_...", and ours in bf16 is what a run takes there by default: the shipped
config, a teacher in fp16, and steps recorded as CUDA graphs, which are made in the warm-ups.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import published_form
from tests.benchmarks.measurement import (
    RESULTS,
    Row,
    default_device,
    extra_peak_mib,
    half_precision_gain,
    interleave,
    matrix_peak,
    publish,
    rows_of,
    table,
)
from tests.benchmarks.step_cases import CASES, SIZES, Case, batches_of, build_models
from tinybert_ds.arguments import GeneralDistillArguments
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY, default_config_path, read_config, resolve_config
from tinybert_ds.engine.graphs import record_steps
from tinybert_ds.engine.loop import Step, optimizer_step
from tinybert_ds.engine.ranks.process_group import World, init_distributed
from tinybert_ds.engine.student import build_engine
from tinybert_ds.engine.teacher import build_teacher
from tinybert_ds.engine.teacher_pass import TeacherPass
from tinybert_ds.engine.watch.monitor import Stopwatch
from tinybert_ds.hardware import Precision, choose_float32_products, inference_dtype, on_cuda
from tinybert_ds.losses import gradients_only
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.layer_map import attention_layers
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.models.student import DistilledStudent, decay_groups, freeze_unused
from tinybert_ds.objective import IntermediateObjective
from tinybert_ds.types import move

TWO_STUDENTS = "ours, two students"
OURS, AS_PUBLISHED, NO_GRAD, AUTOCAST = "ours", "published", "published, no_grad", "published, bf16 autocast, no_grad"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DS_CONFIGS = {"fp32": "zero0_fp32.json", "bf16": "zero0_autocast_bf16.json"}  # the defaults of CPUs
GPU_WARMUPS = 3  # a shape runs as it is, is recorded, and is replayed
LEARNING_RATE = 5e-5
Variants = Mapping[str, Callable[[], Callable[[], None]]]  # name -> what prepares a pass


def prepare_ours(
    case: Case,
    sizes: str,
    dtype: str,
    ds_config: str | None = None,
    num_students: int = 1,
    gradient_checkpointing: bool = False,
) -> Callable[[], None]:
    """Return a pass over the case's samples through the engines, as general distillation makes it.

    Args:
        case, sizes, dtype: Names what is computed.
        ds_config: A shipped DeepSpeed config; default: the dtype's.
        num_students: Equal students that learn from one teacher pass.
        gradient_checkpointing: Whether the students' layers are computed again in the backward pass.
    """
    world = joined_world()
    models = build_models(sizes, case.dropout)
    depth = models.student.config.num_hidden_layers
    every = models.teacher.config.num_hidden_layers // depth
    layer_map = tuple(range(0, models.teacher.config.num_hidden_layers + 1, every))
    teacher = CapturingEncoder(
        models.teacher, states=layer_map, attention_layers=attention_layers(layer_map), logits=False
    )
    engines = []
    for _ in range(num_students):
        model = copy.deepcopy(models.student)
        student = CapturingEncoder(model, states=range(depth + 1), attention_layers=range(depth), logits=False)
        freeze_unused(student)
        if gradient_checkpointing:
            recompute_layers(student, world.device)
        widths = models.student.config.hidden_size, models.teacher.config.hidden_size
        objective = IntermediateObjective(depth, *widths, projection="shared", padding="valid")
        objective.projections[0].load_state_dict(models.projection.state_dict())
        engine = build_engine(
            DistilledStudent(student, objective),
            deepspeed_config(case, ds_config or config_name(dtype, world.device), world),
            weight_decay=0.01,
            total_steps=1_000_000,
            warmup=0.0,
            schedule="constant",
        )
        engine.train()
        engines.append(engine)
    precision: Precision = "fp16" if dtype == "bf16" and on_cuda(world.device) else dtype
    asked = record_steps(
        run_arguments(case.rows, gradient_checkpointing),
        engines,
        build_teacher(teacher, inference_dtype(world.device, precision)),
        world.device,
        overlapped=False,
    )
    assert asked is not None
    teacher_pass = TeacherPass(asked, world.device)
    batches = list(batches_of(case, bins=True))
    stopwatch = Stopwatch(world.device)
    library = torch.backends.mkldnn.matmul
    choose_float32_products(world.device, onednn=True)
    chosen, library.fp32_precision = library.fp32_precision, "none"

    def run() -> None:
        library.fp32_precision = chosen
        try:
            steps()
        finally:
            library.fp32_precision = "none"  # the peers are timed as they are

    def steps() -> None:
        for batch in batches:
            step = Step(1, 0, case.rows, [batch])
            with gradients_only():
                optimizer_step(engines, teacher_pass, step, stopwatch, seed=0, rank=0)

    return run


@functools.cache
def joined_world() -> World:
    """Return this process as the only rank, on the device that it computes on; a second call is allowed."""
    return init_distributed()


def config_name(dtype: str, device: torch.device) -> str:
    """Return the shipped DeepSpeed config that is timed in a dtype: in bf16 the device's default."""
    if dtype == "bf16" and on_cuda(device):
        return default_config_path(device.type, fp16=False).name
    return DS_CONFIGS[dtype]


def run_arguments(rows: int, gradient_checkpointing: bool = False) -> GeneralDistillArguments:
    """Return what a run of such steps was started with."""
    return GeneralDistillArguments(
        output_dir="",
        pregenerated_data=[],
        teacher_model="",
        student_model=[""],
        train_batch_size=rows,
        gradient_checkpointing=gradient_checkpointing,
    )


def deepspeed_config(case: Case, name: str, world: World) -> dict[str, Any]:
    """Return a shipped DeepSpeed config, filled as a run fills it."""
    config, problems = read_config(CONFIG_DIRECTORY / name)
    arguments = run_arguments(case.rows)
    config, more = resolve_config(config, arguments, world_size=world.size, device_type=world.device.type)
    assert not problems + more, problems + more
    return config


def prepare_peer(case: Case, sizes: str, variant: str, original: Path | None) -> Callable[[], None]:
    """Return a pass over the case's samples by the published classes or their form."""
    modeling = published_form.import_original(original) if original else None
    models, device = build_models(sizes, case.dropout), default_device()
    teacher = published_form.build_encoder(modeling, models.teacher, None).to(device)
    student = published_form.build_encoder(modeling, models.student, models.projection).to(device)
    teacher.train(variant == AS_PUBLISHED)  # the published code never puts it into eval mode
    student.train()
    optimizer = torch.optim.AdamW(decay_groups(student, 0.01), lr=LEARNING_RATE, fused=True)
    batches = [move(batch, device) for batch in batches_of(case, bins=False)]
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if variant == AUTOCAST else nullcontext()

    def run() -> None:
        for batch in batches:
            with autocast:
                with nullcontext() if variant == AS_PUBLISHED else torch.no_grad():
                    target = teacher(batch)
                loss = published_form.published_loss(student(batch), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run


def variants_of(case: Case, sizes: str, dtype: str, original: Path | None, *, recomputing: bool) -> Variants:
    """Return what is compared in a dtype: ours first, then the peers; each builds its pass."""
    peers = [AUTOCAST]
    if dtype == "fp32":
        peers = [AS_PUBLISHED, NO_GRAD] if case.steps == 1 else [NO_GRAD]  # many steps: the stronger one alone
    ours = f"{OURS}, gradient checkpointing" if recomputing else OURS
    return {
        ours: partial(prepare_ours, case, sizes, dtype, gradient_checkpointing=recomputing),
        **{peer: partial(prepare_peer, case, sizes, peer, original) for peer in peers},
    }


def prepare_after_first_step(prepare: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Return a prepared pass whose gradients, optimizer states and recordings exist already: they do not count."""
    run = prepare()
    for _ in range(GPU_WARMUPS if on_cuda(default_device()) else 1):
        run()
    return run


def flops(case: Case, sizes: str) -> float:
    """Return the multiply-adds, times 2, of a pass on the samples' own tokens, projections of the losses included."""
    models = build_models(sizes, 0.0)
    teacher, student = models.teacher.config, models.student.config
    lengths = case.lengths().astype(np.float64)

    def forward(config: Any) -> float:
        width = config.hidden_size
        per_token = 2 * (4 * width**2 + 2 * width * config.intermediate_size)
        attention = 4 * width * (lengths**2).sum()
        return config.num_hidden_layers * float(per_token * lengths.sum() + attention)

    projections = (student.num_hidden_layers + 1) * 2 * student.hidden_size * teacher.hidden_size * lengths.sum()
    return forward(teacher) + 3 * (forward(student) + float(projections))


def measure(
    case: Case,
    dtype: str,
    variants: Variants,
    *,
    sizes: str,
    timing: Mapping[str, int],
    memory: bool,
    peak: float,
) -> list[Row]:
    """Return the rows of one case in one dtype; `timing` are interleave's rounds and warm-ups."""
    seconds = interleave({name: prepare() for name, prepare in variants.items()}, **timing)
    looked_at = variants if memory else {}
    extra = {name: extra_peak_mib(prepare_after_first_step, prepare) for name, prepare in looked_at.items()}
    own, *peers = variants
    rows = []
    for peer in peers:
        rows += rows_of(
            "step",
            f"{case.name} {dtype}",
            {own: seconds[own], peer: seconds[peer]},
            peers={own: peer},
            samples=case.samples,
            floors={own: flops(case, sizes) / peak},
            extra_mib=extra,
        )
    print(table(rows), flush=True)
    return rows


def measure_two_students(case: Case, dtype: str, *, sizes: str, timing: Mapping[str, int]) -> list[Row]:
    """Return the rows of two equal students that share a teacher pass, and of one."""
    runs = {name: prepare_ours(case, sizes, dtype, num_students=n) for name, n in ((OURS, 1), (TWO_STUDENTS, 2))}
    seconds = interleave(runs, **timing)
    rows = rows_of("step", f"{case.name} {dtype}", seconds, peers={TWO_STUDENTS: OURS}, samples=case.samples)
    print(table(rows), flush=True)
    return rows


def measured_peaks(asked: Sequence[str] | None) -> dict[str, float]:
    """Return the matrix-product peak of each dtype that is to be timed; by default not of one that is slower than fp32.

    Says so where bf16 is the slower one: torch then multiplies it without instructions of its own, ours in fp32, and
    its rows tell nothing about machines that have them.
    """
    gain = half_precision_gain(torch.bfloat16)
    if gain < 1:
        left_out = "" if asked and "bf16" in asked else "; its rows are left out (--dtypes bf16 asks for them)"
        print(
            f"torch multiplies bf16 matrices at {gain:.2f} times the speed of fp32 ones here, without instructions for"
        )
        print(f"them: bf16 rows say nothing about machines that have these{left_out}", flush=True)
    dtypes = asked or [name for name in DTYPES if name == "fp32" or gain >= 1]
    return {name: matrix_peak(DTYPES[name] if gain >= 1 else torch.float32) for name in dtypes}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Time a step against the published classes.", allow_abbrev=False)
    parser.add_argument("--original", type=Path, help="a checkout of the published implementation; imported")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmups", type=int, help="rounds before them that do not count; default: 1, on a GPU 3")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all of the device, but for tiny")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="default: fp32, and bf16 where the CPU computes it")
    parser.add_argument("--sizes", choices=SIZES, default="usual", help="tiny: models that only show that it runs")
    parser.add_argument("--two_students", action="store_true", help="compare with two students of one teacher instead")
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="ours computes the student's layers twice"
    )
    parser.add_argument("--no_memory", action="store_true", help="leave out the peaks in fresh processes")
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of the README")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.csv")
    parser.add_argument("--plot", action="store_true", help="draw the ratios beside the CSV (needs matplotlib)")
    values = parser.parse_args(arguments)
    rows: list[Row] = []
    on_gpu = on_cuda(default_device())
    warmups = (GPU_WARMUPS if on_gpu else 1) if values.warmups is None else values.warmups
    how = {"sizes": values.sizes, "timing": {"rounds": values.rounds, "warmups": warmups}}
    cases = values.cases or [name for name in CASES if name.startswith("gpu_") == on_gpu and name != "tiny"]
    for dtype, peak in measured_peaks(values.dtypes).items():
        print(f"matrix-product peak in {dtype}: {peak / 1e9:.1f} GFLOP/s", flush=True)
        for case in map(CASES.__getitem__, cases):
            if values.two_students:
                rows += measure_two_students(case, dtype, **how)
                continue
            recomputing = values.gradient_checkpointing
            variants = variants_of(case, values.sizes, dtype, values.original, recomputing=recomputing)
            rows += measure(case, dtype, variants, **how, memory=not values.no_memory, peak=peak)
    publish(rows, values.out, readme=values.readme, plotted=values.plot)
    return rows


if __name__ == "__main__":
    main()
