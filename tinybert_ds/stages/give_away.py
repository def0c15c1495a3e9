"""What is done to a finished directory for those who get the model: its card, and on demand the upload."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinybert_ds.engine.ranks.process_group import run_on_main, write_on_main
from tinybert_ds.engine.run.run import Session
from tinybert_ds.models.hub import upload
from tinybert_ds.models.run_card import write_run_card
from tinybert_ds.stages.task_data import TaskData

logger = logging.getLogger(__name__)


def give_away(session: Session[Any], directories: Sequence[Path], task: TaskData | None) -> None:
    """Write the cards of finished runs and upload them where the command line says so; called on all ranks.

    Args:
        task: What they were judged on; None for general distillation.
    """
    rows = {split: len(task.splits[split]) for split in task.spec.eval_splits} if task else {}
    for directory in directories:
        write_on_main(session.world, directory, partial(_write, directory, rows))
    repo = session.arguments.push_to_hub
    for directory in directories if repo else ():
        name = repo if len(directories) == 1 else f"{repo}-{directory.name}"
        run_on_main(session.world, partial(upload, directory, name))
        logger.info("%s: uploaded to %s", directory, name)


def _write(directory: Path, rows: Mapping[str, int]) -> None:
    if (directory / "run.json").is_file():  # a search leaves one in each of its runs
        write_run_card(directory, rows)
