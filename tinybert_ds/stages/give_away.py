"""What is done to finished directories for those who get the models: their cards, and on demand the upload."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tinybert_ds.engine.ranks.process_group import run_on_main, write_on_main
from tinybert_ds.engine.run.run import Session
from tinybert_ds.models.card import write_card
from tinybert_ds.models.hub import require_repository, upload
from tinybert_ds.models.run_card import run_card
from tinybert_ds.stages.search import SEARCH_TABLE, taken_directory
from tinybert_ds.stages.task_data import TaskData

logger = logging.getLogger(__name__)


def require_repositories(session: Session[Any], directories: Sequence[Path]) -> None:
    """Find the repositories that `give_away` will upload to, or make them, before any work; called on all ranks.

    Raises:
        ModelError: The hub cannot be reached, or does not let this user write there.
    """
    for name in _repositories(session, directories).values():
        run_on_main(session.world, partial(require_repository, name))


def give_away(session: Session[Any], directories: Sequence[Path], task: TaskData | None) -> None:
    """Write the cards of finished runs and upload them where the command line says so; called on all ranks.

    Args:
        task: What they were judged on; None for general distillation.
    """
    rows = {split: len(task.splits[split]) for split in task.spec.eval_splits} if task else {}
    for directory in directories:
        write_on_main(session.world, directory, partial(_write, directory, rows, session.arguments))
    for directory, name in _repositories(session, directories).items():
        run_on_main(session.world, partial(upload, directory, name))
        logger.info("%s: uploaded to %s", directory, name)


def _repositories(session: Session[Any], directories: Sequence[Path]) -> dict[Path, str]:
    """Directory -> its repository: of one alone the one that --push_to_hub names, of several one for each."""
    repo = session.arguments.push_to_hub
    if not repo:
        return {}
    if len(directories) == 1:
        return {directories[0]: repo}
    return {directory: f"{repo}-{directory.name}" for directory in directories}


def _write(directory: Path, rows: Mapping[str, int], arguments: Any) -> None:
    """Write the card of a run's directory, or of a search's, whose model is that of one of its trials."""
    is_search = not (directory / "run.json").is_file()
    card = run_card(taken_directory(directory) if is_search else directory, rows)
    sections = dict(card.sections)
    if is_search:
        sections["How it was chosen"] = (directory / SEARCH_TABLE).read_text(encoding="utf-8")
    said = replace(card, license=arguments.license, language=arguments.languages, datasets=arguments.datasets)
    write_card(directory, replace(said, name=directory.resolve().name, sections=sections))
