"""What all training commands do around the loop: check everything first, then build, resume, train and finish."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
import transformers

from tinybert_ds.arguments import Arguments, TrainingArguments, parse_arguments, recipe_values
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.engine.checkpoints.best_student import best_directory
from tinybert_ds.engine.checkpoints.store import CHECKPOINT_DIRECTORY, Checkpoints
from tinybert_ds.engine.ds_config import default_config_path, fill_schedule, read_config, resolve_config
from tinybert_ds.engine.loop import Evaluation, Guards, Plan, StudentRun, count_steps, train
from tinybert_ds.engine.ranks.lost_ranks import faults_reported
from tinybert_ds.engine.ranks.process_group import (
    World,
    init_distributed,
    require_same_everywhere,
    require_shared_directory,
    run_on_main,
    write_on_main,
)
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.engine.student import build_engine
from tinybert_ds.engine.teacher import Teacher, dtype_problems
from tinybert_ds.engine.teacher_pass import TeacherPass, side_stream
from tinybert_ds.engine.watch.console import set_up_console
from tinybert_ds.engine.watch.health import Health
from tinybert_ds.engine.watch.monitor import Monitor
from tinybert_ds.engine.watch.stall import StallWatch
from tinybert_ds.errors import CheckpointError, raise_all
from tinybert_ds.hardware import choose_float32_products, multiplies_fast
from tinybert_ds.models.saving import copy_student
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.preemption import Preemption, grace_problems, undisturbed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session(Generic[Arguments]):
    """A command whose arguments and DeepSpeed config hold together, on its ranks."""

    arguments: Arguments
    world: World
    ds_config: dict[str, Any]

    @property
    def output_dir(self) -> Path:
        return Path(self.arguments.output_dir)


@dataclass(frozen=True)
class Target:
    """A student's place and what makes two runs of it the same, known before any model is loaded."""

    directory: Path
    identity: dict[str, Any]  # beside what all stages share
    final_results: Callable[[], dict[str, float]] | None = None
    """Judges what the directory holds at the end, on all ranks; None: the last evaluation does."""


@dataclass(frozen=True)
class Learner:
    """What a student trains with."""

    module: DistilledStudent
    evaluation: Callable[[Any], Evaluation | None]  # from the engine
    export: Callable[[Any, Path], None]  # writes the engine's student to a directory; called on all ranks


@dataclass(frozen=True)
class Models:
    """The models of a stage, made only when there is something to do: a learner for each target."""

    teacher: Teacher | None
    learners: Sequence[Learner]


def begin(kind: type[Arguments], argv: Sequence[str] | None, prog: str) -> Session[Arguments]:
    """Parse the command line, join the process group and settle the DeepSpeed config.

    Raises:
        ConfigError: everything that is wrong with the flags, the JSON and their fit, in one message.
    """
    arguments, problems = parse_arguments(kind, sys.argv[1:] if argv is None else argv, prog)
    world = init_distributed()
    set_up_console(arguments.log_level, is_main=world.is_main)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    trains = isinstance(arguments, TrainingArguments) and not getattr(arguments, "do_eval", False)
    config, more = _deepspeed_config(arguments, world) if trains else ({}, [])
    if trains:
        more += dtype_problems(getattr(arguments, "teacher_dtype", "auto"), world.device)
    raise_all(problems + more)
    if trains and not getattr(arguments, "search", False):  # whose directory holds runs and is none itself
        _check_output_dir(arguments, world)
    choose_float32_products(world.device, onednn=not arguments.no_onednn_matmul)
    _warn_of_slow_bf16(arguments, config, world)
    return Session(arguments, world, config)


def _warn_of_slow_bf16(arguments: Any, config: dict[str, Any], world: World) -> None:
    """Say what bf16 costs on a CPU that does not multiply it."""
    if multiplies_fast(torch.bfloat16, world.device):
        return
    if config.get("bf16", {}).get("enabled") or getattr(arguments, "teacher_dtype", "auto") == "bf16":
        logger.warning("this CPU has no bf16 instructions: bf16 products are computed in fp32, which gains no time")
    if config.get("torch_autocast", {}).get("enabled"):
        logger.warning(
            "this CPU has no bf16 instructions: torch_autocast takes many times as long as fp32; remove it from the "
            "DeepSpeed config"
        )


def with_arguments(session: Session[Arguments], arguments: Arguments) -> Session[Arguments]:
    """Return the session for other arguments of the same command.

    Raises:
        ConfigError: They do not fit the DeepSpeed config.
    """
    config, problems = _deepspeed_config(arguments, session.world)
    raise_all(problems)
    return Session(arguments, session.world, config)


def run_stage(
    session: Session[Any],
    *,
    title: str,
    source: BatchSource,
    targets: Sequence[Target],
    evaluation_steps: int | None,
    build: Callable[[], Models],
    total_steps: int | None = None,
    conclude: Callable[[Callable[[str], None]], None] | None = None,
) -> list[dict[str, float]]:
    """Train a stage from where it stands to its end; return the final metrics of each target.

    Args:
        session: From `begin`.
        title: What the progress bar is called.
        source: The training data.
        targets: The students. Several of them learn from one teacher pass over the same batches.
        evaluation_steps: Steps between two evaluations; None: no evaluation while training.
        build: Loads the models; called only when the run is not finished.
        total_steps: Optimizer steps; None: what the arguments say of this source.
        conclude: Called on all ranks after the last step, before the results are written, with what takes signs of
            life.
    """
    arguments, world = session.arguments, session.world
    if total_steps is None:
        total_steps = count_steps(source, max_steps=arguments.max_steps, num_epochs=arguments.num_train_epochs)
    raise_all(
        fill_schedule(session.ds_config, total_steps=total_steps, warmup_steps=int(arguments.warmup * total_steps))
    )
    directories = _open_directories(session, targets)
    finished = [run_on_main(world, partial(directory.finished_results, total_steps)) for directory in directories]
    resume = run_on_main(world, partial(directories[0].resolve_resume, arguments.resume))
    known = [results for results in finished if results is not None and resume == "auto"]
    if len(known) == len(targets):
        for target in targets:
            logger.info("%s in %s is finished (%d steps); nothing to do", title, target.directory, total_steps)
        return known

    models = build()
    runs = _start_runs(session, targets, directories, models, resume=resume, total_steps=total_steps, title=title)
    plan = Plan(
        total_steps=total_steps,
        logging_steps=arguments.logging_steps,
        checkpoint_steps=arguments.checkpoint_steps,
        evaluation_steps=evaluation_steps,
        accumulation=arguments.gradient_accumulation_steps,
        seed=arguments.seed,
    )
    side = side_stream(world.device, wanted=getattr(arguments, "overlap_teacher", False))
    teacher_pass = TeacherPass(models.teacher, world.device, side)
    preemption = Preemption(arguments.preempt_grace_seconds)
    stall = StallWatch(arguments.stall_timeout_seconds, session.output_dir, world.rank)
    with stall, faults_reported(runs[0].checkpoints.last_good):
        with preemption.listening():
            train(runs, teacher_pass, source, plan, world, Guards(preemption, stall))
        if conclude is not None:
            conclude(stall.alive)
        with undisturbed():
            return [_finish(*parts, total_steps, world) for parts in zip(targets, directories, runs, strict=True)]


def _finish(
    target: Target, directory: RunDirectory, run: StudentRun, total_steps: int, world: World
) -> dict[str, float]:
    """Fill a student's directory with its result, the best student or else the last; return its final metrics."""
    if run.state.best_step is None:
        run.export(target.directory)
    else:
        best = best_directory(run.checkpoints.directory, run.state.best_step)
        write_on_main(world, target.directory, lambda: copy_student(best, target.directory))
    results = target.final_results() if target.final_results else run.state.metrics
    write_on_main(world, target.directory, partial(directory.note_finish, total_steps, results))
    run.monitor.finish(results)
    return results


def _open_directories(session: Session[Any], targets: Sequence[Target]) -> list[RunDirectory]:
    arguments, world = session.arguments, session.world
    directories = []
    for target in targets:
        identity = _identity(session, target)
        require_same_everywhere(identity)
        directory = RunDirectory(target.directory)
        run_on_main(world, partial(directory.open, identity, resume=arguments.resume))
        require_shared_directory(target.directory, world)
        directories.append(directory)
    return directories


def _start_runs(
    session: Session[Any],
    targets: Sequence[Target],
    directories: Sequence[RunDirectory],
    models: Models,
    *,
    resume: str,
    total_steps: int,
    title: str,
) -> list[StudentRun]:
    """Make the engines and take them to where the run stands."""
    arguments, world = session.arguments, session.world
    all_checkpoints = [
        Checkpoints(t.directory / CHECKPOINT_DIRECTORY, world, arguments.save_total_limit) for t in targets
    ]
    choices = run_on_main(world, partial(common_choices, all_checkpoints, resume))
    runs = []
    for number, (target, learner, checkpoints, choice) in enumerate(
        zip(targets, models.learners, all_checkpoints, choices, strict=True)
    ):
        config = copy.deepcopy(session.ds_config)
        engine = build_engine(
            learner.module,
            config,
            weight_decay=arguments.weight_decay,
            total_steps=total_steps,
            warmup=arguments.warmup,
            schedule=arguments.schedule,
        )
        evaluation = learner.evaluation(engine)
        state = checkpoints.resume(engine, choice)
        if state.step > total_steps:
            raise CheckpointError(
                f"the run in {target.directory} is at step {state.step}, beyond the {total_steps} that are asked for; "
                "raise --max_steps or --num_train_epochs, or give --resume one of its older checkpoints"
            )
        launch = {"arguments": dataclasses.asdict(arguments), "deepspeed_config": config, "world_size": world.size}
        record = {**launch, "recipe": recipe_values(arguments), "from_step": state.step}
        run_on_main(world, partial(directories[number].note_start, _identity(session, target), record))
        monitor = Monitor(
            target.directory,
            enabled=world.is_main,
            start_step=state.step,
            total_steps=total_steps,
            title=title,
            name=target.directory.name if len(targets) > 1 else None,
            show_bar=number == 0,
        )
        monitor.describe(dataclasses.asdict(arguments), config, world.size)
        export = partial(learner.export, engine)
        runs.append(StudentRun(engine, state, checkpoints, monitor, evaluation, export, Health(world.device)))
    return runs


def common_choices(all_checkpoints: Sequence[Checkpoints], resume: str) -> list[str]:
    """Return what each student is to resume from, so that all stand at the same step.

    Args:
        all_checkpoints: Of each student.
        resume: The user's `--resume`; it holds as it is for a single student.
    """
    if len(all_checkpoints) == 1:
        return [resume]
    common = set.intersection(*(set(checkpoints.complete_tags()) for checkpoints in all_checkpoints))
    while common and not all(checkpoints.verify(max(common)) for checkpoints in all_checkpoints):
        common.remove(max(common))
    newest = max(common, default=None)
    return [str(checkpoints.directory / newest) if newest else "none" for checkpoints in all_checkpoints]


def _identity(session: Session[Any], target: Target) -> dict[str, Any]:
    scheduler = session.ds_config.get("scheduler", {}).get("type")  # its steps follow from the arguments
    return {**target.identity, **_common_identity(session.arguments), "scheduler": scheduler}


def _deepspeed_config(arguments: Any, world: World) -> tuple[dict[str, Any], list[str]]:
    if arguments.deepspeed_config is not None:
        path = Path(arguments.deepspeed_config)
    else:
        path = default_config_path(world.device.type, fp16=arguments.fp16)
    config, problems = read_config(path)
    if not problems:
        logger.info("DeepSpeed config: %s", path)
    config, more = resolve_config(config, arguments, world_size=world.size, device_type=world.device.type)
    if config.get("scheduler") and not more:
        logger.info("learning rate: %s of the DeepSpeed config instead of --lr_schedule", config["scheduler"]["type"])
    return config, problems + more + grace_problems(arguments.preempt_grace_seconds, os.environ)


def _check_output_dir(arguments: Any, world: World) -> None:
    """Look into the directory at once: to count or to tokenise the data may take long. Several have one each."""
    students = getattr(arguments, "student_model", "")
    if isinstance(students, str) or len(students) == 1:
        directory = RunDirectory(Path(arguments.output_dir))
        run_on_main(world, partial(directory.check, _common_identity(arguments), resume=arguments.resume))


def _common_identity(arguments: Any) -> dict[str, Any]:
    names = ("seed", "train_batch_size", "learning_rate", "weight_decay", "max_grad_norm", "schedule", "warmup")
    return {name: getattr(arguments, name) for name in names}
