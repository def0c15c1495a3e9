"""All tasks by name: GLUE's, and the user's own out of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tinybert_ds.data.glue import GLUE_TASKS
from tinybert_ds.data.task_spec import SplitFile, TaskSpec, describe_labels, label_ids
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.errors import ConfigError

__all__ = ["TASKS", "SplitFile", "TaskSpec", "describe_labels", "find_task", "label_ids", "load_task_file"]

TASKS: Mapping[str, TaskSpec] = {spec.name: spec for spec in GLUE_TASKS}
"""The tasks that need no `--task_file`, by the name that `--task_name` takes."""


def find_task(task_name: str | None, task_file: str | Path | None) -> TaskSpec:
    """Return the task of `--task_name` or `--task_file`; raises ConfigError unless one is given and it is known."""
    if (task_name is None) == (task_file is None):
        raise ConfigError(
            "give one of --task_name and --task_file (found " + ("neither)" if task_name is None else "both)")
        )
    if task_file is not None:
        return load_task_file(task_file)
    assert task_name is not None
    spec = TASKS.get(task_name.lower())
    if spec is None:
        raise ConfigError(
            f"--task_name: there is no task {task_name!r}; known are {', '.join(TASKS)}. "
            "Describe a task of your own in a YAML file and pass it with --task_file"
        )
    return spec
