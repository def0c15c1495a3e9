"""How a command begins on its ranks: everything that the command line decides is checked before anything is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from tinybert_ds.arguments import Arguments, TrainingArguments, identity_of
from tinybert_ds.arguments.groups import Teacher
from tinybert_ds.engine.ds_config import default_config_path, read_config, resolve_config
from tinybert_ds.engine.ds_defaults import costly_settings
from tinybert_ds.engine.ranks.process_group import World, init_distributed, run_on_main
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.engine.run.run import Session
from tinybert_ds.engine.watch.console import set_up_console
from tinybert_ds.errors import UserError, raise_all
from tinybert_ds.hardware import Precision, choose_float32_products, multiplies_fast, precision_problems
from tinybert_ds.models.hub import require_repository
from tinybert_ds.preemption import grace_problems

logger = logging.getLogger(__name__)

Training = TypeVar("Training", bound=TrainingArguments)


def begin_evaluation(arguments: Arguments, problems: Sequence[str]) -> Session[Arguments]:
    """Join the ranks of a command that trains nothing.

    Raises:
        ConfigError: The problems.
    """
    world = join(arguments.log_level)
    raise_all(problems)
    choose_float32_products(world.device, onednn=not arguments.no_onednn_matmul)
    return Session(arguments, world, {}, "")


def begin_training(arguments: Training, problems: Sequence[str], *, single: bool = True) -> Session[Training]:
    """Join the ranks of a training command, settle its DeepSpeed config and look into its directory.

    Args:
        single: Whether `--output_dir` is the directory of one run. It is looked into at once, because to count or to
            tokenise the data may take long.

    Raises:
        ConfigError: Everything that is wrong with the flags, the JSON and their fit, in one message; or a directory
            that cannot become this run's.
        CheckpointError: `--resume` names no checkpoint of the run.
    """
    world = join(arguments.log_level)
    config, more = _deepspeed_config(arguments, world)
    teacher_dtype: Precision = arguments.teacher_dtype if isinstance(arguments, Teacher) else "auto"
    raise_all([*problems, *more, *precision_problems("teacher_dtype", teacher_dtype, world.device)])
    resume = arguments.resume
    if single:
        resume = run_on_main(world, partial(_look, Path(arguments.output_dir), arguments))
    if arguments.push_to_hub:
        run_on_main(world, partial(require_repository, arguments.push_to_hub))
    choose_float32_products(world.device, onednn=not arguments.no_onednn_matmul)
    if not multiplies_fast(torch.bfloat16, world.device):
        _warn_of_slow_bf16(config, teacher=teacher_dtype == "bf16")
    return Session(arguments, world, config, resume)


def with_arguments(session: Session[Training], arguments: Training) -> Session[Training]:
    """Return the session for other arguments of the same command, which has not looked into its directory.

    Raises:
        ConfigError: They do not fit the DeepSpeed config.
    """
    config, problems = _deepspeed_config(arguments, session.world, wide=not _autocasts(session.ds_config))
    raise_all(problems)
    return Session(arguments, session.world, config, arguments.resume)


def join(log_level: str) -> World:
    """Join the process group and set up what this rank shows."""
    world = init_distributed()
    set_up_console(log_level, is_main=world.is_main)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return world


def _look(path: Path, arguments: TrainingArguments) -> str:
    """Refuse a directory as far as the arguments alone can tell; return what `--resume` means in it."""
    directory = RunDirectory(path)
    directory.verify(identity_of(arguments), resume=arguments.resume, whole=False)
    return directory.resolve_resume(arguments.resume)


def _deepspeed_config(
    arguments: TrainingArguments, world: World, *, wide: bool | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Read the config and say what is wrong with it; `wide` None: fp32 products if the directory's run has them."""
    if arguments.deepspeed_config is not None:
        path = Path(arguments.deepspeed_config)
    else:
        if wide is None:
            wide = run_on_main(world, partial(_begun_wide, Path(arguments.output_dir)))
        path = default_config_path(world.device.type, fp16=arguments.fp16, wide=wide)
    config, problems = read_config(path)
    if not problems:
        logger.info("DeepSpeed config: %s", path)
    config, more = resolve_config(config, arguments, world_size=world.size, device_type=world.device.type)
    for sentence in costly_settings(config) if not more else ():
        logger.info("%s", sentence)
    if config.get("scheduler") and not more:
        logger.info("learning rate: %s of the DeepSpeed config instead of --lr_schedule", config["scheduler"]["type"])
    return config, problems + more + grace_problems(arguments.preempt_grace_seconds, os.environ)


def _begun_wide(output_dir: Path) -> bool:
    """Whether a run that the directory holds, or that one in it does, was begun with fp32 products on a CPU.

    It goes on so: an earlier version's default was that on every CPU.
    """
    for directory in (output_dir, *sorted(path.parent for path in output_dir.glob("*/run.json"))):
        with suppress(UserError):  # of a record that cannot be read is told where the directory is looked into
            record = RunDirectory(directory).record()
            if record is not None:
                return not _autocasts(record.get("deepspeed_config", {}))
    return False


def _autocasts(config: dict[str, Any]) -> bool:
    return bool(config.get("torch_autocast", {}).get("enabled", False))


def _warn_of_slow_bf16(config: dict[str, Any], *, teacher: bool) -> None:
    """Say what bf16 costs on a CPU that does not multiply it."""
    if teacher or config.get("bf16", {}).get("enabled"):
        logger.warning("this CPU has no bf16 instructions: bf16 products are computed in fp32, which gains no time")
    if _autocasts(config):
        logger.warning(
            "this CPU has no bf16 instructions: torch_autocast takes many times as long as fp32; remove it from the "
            "DeepSpeed config"
        )
