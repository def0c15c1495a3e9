"""What all training commands do around the loop: check everything first, then build, resume, train and finish."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import transformers

from tinybert_ds.arguments import Arguments, parse_arguments
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.engine.checkpoint import Checkpoints
from tinybert_ds.engine.console import set_up_console
from tinybert_ds.engine.distributed import (
    World,
    init_distributed,
    require_same_everywhere,
    require_shared_directory,
    run_on_main,
)
from tinybert_ds.engine.ds_config import default_config_path, fill_schedule, read_config, resolve_config
from tinybert_ds.engine.lessons import Lessons, side_stream
from tinybert_ds.engine.loop import Evaluation, Plan, count_steps, train
from tinybert_ds.engine.monitor import Monitor
from tinybert_ds.engine.run_directory import RunDirectory
from tinybert_ds.engine.student import build_engine
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.errors import CheckpointError, raise_all
from tinybert_ds.hardware import choose_float32_products
from tinybert_ds.models.student import DistilledStudent

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
class Models:
    """What a stage trains, made only when there is something to do."""

    module: DistilledStudent
    teacher: Teacher | None
    evaluation: Callable[[Any], Evaluation | None]  # from the engine
    export: Callable[[Any], None]  # writes the engine's student to the output directory; called on all ranks


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
    trains = not getattr(arguments, "do_eval", False)
    config, more = _deepspeed_config(arguments, world) if trains else ({}, [])
    raise_all(problems + more)
    choose_float32_products(world.device, onednn=not arguments.no_onednn_matmul)
    return Session(arguments, world, config)


def run_stage(
    session: Session[Any],
    *,
    title: str,
    source: BatchSource,
    identity: dict[str, Any],
    evaluation_steps: int | None,
    build: Callable[[], Models],
    final_results: Callable[[], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train a stage from where it stands to its end; return its final metrics.

    Args:
        session: From `begin`.
        title: What the progress bar is called.
        source: The training data.
        identity: What makes two runs the same, beside what all stages share.
        evaluation_steps: Steps between two evaluations; None: no evaluation while training.
        build: Loads the models; called only when the run is not finished.
        final_results: Judges what the output directory holds at the end, on all ranks; None: the last evaluation does.
    """
    arguments, world = session.arguments, session.world
    total_steps = count_steps(source, max_steps=arguments.max_steps, num_epochs=arguments.num_train_epochs)
    config = session.ds_config
    raise_all(fill_schedule(config, total_steps=total_steps, warmup_steps=int(arguments.warmup * total_steps)))
    identity = {**identity, **_common_identity(arguments)}
    require_same_everywhere(identity)
    directory = RunDirectory(session.output_dir)
    run_on_main(world, lambda: directory.open(identity, resume=arguments.resume))
    require_shared_directory(session.output_dir, world)
    finished = run_on_main(world, lambda: directory.finished_results(total_steps))
    if finished is not None:
        logger.info("%s in %s is finished (%d steps); nothing to do", title, session.output_dir, total_steps)
        return finished

    models = build()
    engine = build_engine(
        models.module,
        config,
        weight_decay=arguments.weight_decay,
        total_steps=total_steps,
        warmup=arguments.warmup,
        schedule=arguments.schedule,
    )
    evaluation = models.evaluation(engine)
    checkpoints = Checkpoints(session.output_dir / "checkpoints", world, arguments.save_total_limit)
    state = checkpoints.resume(engine, arguments.resume)
    if state.step > total_steps:
        raise CheckpointError(
            f"the run in {session.output_dir} is at step {state.step}, beyond the {total_steps} that are asked for; "
            "raise --max_steps or --num_train_epochs, or give --resume one of its older checkpoints"
        )
    launch = {"arguments": dataclasses.asdict(arguments), "deepspeed_config": config, "world_size": world.size}
    run_on_main(world, lambda: directory.note_start(identity, {**launch, "from_step": state.step}))
    plan = Plan(
        total_steps=total_steps,
        logging_steps=arguments.logging_steps,
        checkpoint_steps=arguments.checkpoint_steps,
        evaluation_steps=evaluation_steps,
        accumulation=arguments.gradient_accumulation_steps,
        seed=arguments.seed,
    )
    monitor = Monitor(
        session.output_dir, enabled=world.is_main, start_step=state.step, total_steps=total_steps, title=title
    )
    monitor.describe(dataclasses.asdict(arguments), config, world.size)
    side = side_stream(world.device, wanted=getattr(arguments, "overlap_teacher", False))
    state = train(
        engine,
        Lessons(models.teacher, world.device, side),
        source,
        plan,
        evaluation,
        state=state,
        checkpoints=checkpoints,
        monitor=monitor,
        world=world,
    )
    if evaluation is None or evaluation.score is None:
        models.export(engine)
    results = final_results() if final_results else state.metrics
    run_on_main(world, lambda: directory.note_finish(total_steps, results))
    monitor.finish(results)
    return results


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
    return config, problems + more


def _common_identity(arguments: Any) -> dict[str, Any]:
    names = ("seed", "train_batch_size", "learning_rate", "weight_decay", "max_grad_norm", "schedule", "warmup")
    return {name: getattr(arguments, name) for name in names}
