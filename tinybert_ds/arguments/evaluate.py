"""The arguments of the evaluation of models on tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.common import option

TASK_PLACE = "{task}"
"""Stands for the task in a model's path."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Evaluate models on tasks of GLUE or one of your own: one table, and the files that the benchmark takes."""

    model: list[str] = option(
        "[NAME=]DIR of a fine-tuned model, several for several columns; {task} in DIR stands for the task's name, such "
        "as student=out/{task}/student."
    )
    output_dir: str = option("Directory for glue_results.md, glue_results.json, predictions and submissions.")
    task_name: str | None = option(
        "One task of GLUE, several with commas, or all: those for which there are files and models.", None
    )
    glue_dir: str | None = option("Directory with the tasks' folders, as GLUE has them.", None)
    task_file: str | None = option("Instead of --task_name: YAML file that describes a task of your own.", None)
    data_dir: str | None = option("With --task_file: directory of the task's files.", None)
    submission: bool = option(
        "Predict the test files too, and write for each model the zip that the benchmark's server takes.", False
    )
    max_seq_length: int | None = option(
        "Longest sample in tokens. Default: 64 for single sentences, 128 for pairs.", None
    )
    eval_batch_size: int = option("Samples of one forward over all ranks.", 32)
    cache_dir: str | None = option(
        "Folder of tokenised rows. Default: .tinybert_cache beside a task's files, or where that cannot be written "
        "~/.cache/tinybert_ds.",
        None,
    )
    allow_unknown: bool = option("Go on although the tokeniser does not know most of a task file's words.", False)
    teacher_labels: str | None = option(
        "Names of a model's outputs in its order, for one task: of those models whose config has only LABEL_0 ... or "
        "other names than the task's.",
        None,
    )
    pooler_relu: bool = option(
        "The models apply a ReLU to their pooled output, as the published fine-tuned TinyBERTs do.", False
    )
    do_lower_case: bool = option("Force lower-casing. Default: what the model directory says.", False)
    no_lower_case: bool = option("Force keeping capitals. Default: what the model directory says.", False)
    no_cuda: bool = option("Evaluate on the CPU even where there is a GPU.", False)
    no_onednn_matmul: bool = option("On a CPU, leave float32 matrix products to torch's default library.", False)
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "Least weighty messages that rank 0 shows.", "info"
    )
    deepspeed: bool = option("Accepted for habit's sake.", False)
    local_rank: int = option("Set by the `deepspeed` launcher.", -1)

    @property
    def lower_case(self) -> bool | None:
        """Forced casing of the tokeniser, or None for the model directory's own."""
        return True if self.do_lower_case else (False if self.no_lower_case else None)

    @property
    def task_names(self) -> list[str]:
        """`--task_name` as a list; ["all"] for all, empty with `--task_file`."""
        return [name.strip().lower() for name in self.task_name.split(",")] if self.task_name else []

    @property
    def stated_labels(self) -> list[str] | None:
        """`--teacher_labels` as a list."""
        return self.teacher_labels.split(",") if self.teacher_labels else None

    @property
    def models(self) -> dict[str, str]:
        """Name -> path, with the place of the task in it."""
        named = [text.partition("=") if "=" in text else ("model", "=", text) for text in self.model]
        return {name: path for name, _, path in named}

    def problems(self) -> list[str]:
        """Everything that is wrong with the values by themselves, one sentence each."""
        found = self._place_problems()
        for name in ("max_seq_length", "eval_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"--{name} is {value}; it must be at least 1")
        if self.do_lower_case and self.no_lower_case:
            found.append("--do_lower_case and --no_lower_case contradict each other; give one of them")
        if len(self.models) < len(self.model) or not all(self.models):
            found.append(f"--model {' '.join(self.model)}: give each model a name of its own, such as student=DIR")
        if any(not name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in self.models):
            found.append(f"--model: names become file names; take letters, digits, . - and _, not {list(self.models)}")
        several = len(self.task_names) > 1 or self.task_names == ["all"]
        fixed = [path for path in self.models.values() if TASK_PLACE not in path]
        if several and fixed:
            found.append(
                f"--model {' '.join(fixed)}: several tasks need several models; write {TASK_PLACE} where the task's "
                "name stands"
            )
        if several and self.teacher_labels:
            found.append("--teacher_labels is for one task; give one --task_name at a time")
        return found

    def _place_problems(self) -> list[str]:
        """What is wrong with the choice of the tasks and the place of their files."""
        of_glue, own = (self.task_name, self.glue_dir), (self.task_file, self.data_dir)
        if (all(of_glue) and not any(own)) or (all(own) and not any(of_glue) and not self.submission):
            return []
        if all(own) and self.submission:
            return ["--submission is for the benchmark's tasks; leave it out with --task_file"]
        return [
            "give --task_name and --glue_dir for tasks of GLUE, or --task_file and --data_dir for one of your own, "
            "not both"
        ]
