"""All tasks by name: those of GLUE and CLUE, and the user's own out of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tinybert_ds.data.clue import CLUE_TASKS
from tinybert_ds.data.glue import GLUE_TASKS
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.errors import ConfigError, DataError, did_you_mean
from tinybert_ds.foreign_text import listed_paths, quoted

TASKS: Mapping[str, TaskSpec] = {spec.name: spec for spec in (*GLUE_TASKS, *CLUE_TASKS)}
"""The tasks that need no `--task_file`, by the name that `--task_name` takes."""

BENCHMARKS: Mapping[str, tuple[TaskSpec, ...]] = {
    "all": tuple(spec for spec in GLUE_TASKS if spec.name != "mnli-mm"),  # which are mnli's models and files
    "clue": CLUE_TASKS,
}
"""What `--task_name` takes for all tasks of a benchmark."""


def find_task(task_name: str | None, task_file: str | Path | None) -> TaskSpec:
    """Return the task of `--task_name` or `--task_file`, one of which is given; raises ConfigError if it is unknown."""
    if task_file is not None:
        return load_task_file(task_file)
    assert task_name is not None, "neither --task_name nor --task_file"
    spec = TASKS.get(task_name.lower())
    if spec is None:
        raise ConfigError(
            f"--task_name: there is no task {quoted(task_name)}{did_you_mean(task_name[:80], TASKS)}; known are "
            f"{', '.join(TASKS)}. "
            "Describe a task of your own in a YAML file and pass it with --task_file"
        )
    return spec


def find_task_folder(spec: TaskSpec, glue_dir: str | Path) -> Path:
    """Return the folder of a task below the directory of them all; capitals do not count.

    Raises:
        DataError: No such directory, or none in it that is called like the task.
    """
    root = Path(glue_dir)
    if not root.is_dir():
        raise DataError(f"--glue_dir: {root} is not a directory; give the one with the tasks' folders")
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    for folder in folders:
        if folder.name.lower() in {spec.directory.lower(), spec.name.lower()}:
            return folder
    raise DataError(
        f"--glue_dir: {root} has no folder {spec.directory or spec.name}; it has "
        f"{listed_paths(path.name for path in folders) or 'none'}. Give the right one, or the task's own with "
        "--data_dir"
    )
