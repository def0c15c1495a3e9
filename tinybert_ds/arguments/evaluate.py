"""The arguments of the evaluation of models on tasks."""

from __future__ import annotations

from dataclasses import dataclass

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import like, named_path, place
from tinybert_ds.arguments.task import FinetuneArguments

TASK_PLACE = "{task}"
"""Stands for the task in a model's path."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(groups.TaskName, groups.StatedLabels, groups.TaskRows):
    """Evaluate models on tasks of GLUE or one of your own: one table, and the files that the benchmark takes."""

    prog = "evaluate_glue.py"

    model: list[str] = like(
        FinetuneArguments.__dataclass_fields__["model"],
        help="[NAME=]DIR of a fine-tuned model, several for several columns; {task} in DIR stands for the task's name, "
        "such as student=out/{task}/student. What stands before the first = is a name unless it has a slash: "
        "write ./lr=3 for a directory of that name.",
        path="NAME=DIR",
        metavar="[NAME=]DIR",
    )
    output_dir: str = like(
        groups.OUTPUT_DIR, help="Directory for glue_results.md, glue_results.json, predictions and submissions."
    )
    glue_dir: str | None = like(groups.GLUE_DIR)
    task_name: str | None = like(
        groups.TASK_NAME,
        help="One task of GLUE or CLUE, several with commas, or all (of GLUE) or clue (of CLUE): those for which there "
        "are files and models.",
    )
    data_dir: str | None = like(groups.DATA_DIR, None, help="With --task_file: directory of the task's files.")
    submission: bool = place(
        "Predict the test files too, and write for each model the zip that the benchmark's server takes.", False
    )
    pooler_relu: bool = like(
        groups.POOLER_RELU,
        help="The models apply a ReLU to their pooled output, as the published fine-tuned TinyBERTs do.",
    )

    @property
    def models(self) -> dict[str, str]:
        """Name -> path, with the place of the task in it."""
        return {name or "model": path for name, path in map(named_path, self.model)}

    def problems(self) -> list[str]:
        found = super().problems() + self._place_problems()
        if len(self.models) < len(self.model) or not all(self.models):
            found.append(f"--model {' '.join(self.model)}: give each model a name of its own, such as student=DIR")
        if any(not name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in self.models):
            found.append(f"--model: names become file names; take letters, digits, . - and _, not {list(self.models)}")
        fixed = [path for path in self.models.values() if TASK_PLACE not in path]
        if self.several_tasks and fixed:
            found.append(
                f"--model {' '.join(fixed)}: several tasks need several models; write {TASK_PLACE} where the task's "
                "name stands"
            )
        if self.several_tasks and self.teacher_labels:
            found.append("--teacher_labels is for one task; give one --task_name at a time")
        return found

    def _place_problems(self) -> list[str]:
        """What is wrong with the choice of the tasks and the place of their files."""
        of_glue, own = (self.task_name, self.glue_dir), (self.task_file, self.data_dir)
        if (all(of_glue) and not any(own)) or (all(own) and not any(of_glue) and not self.submission):
            return []
        if all(own) and self.submission:
            return ["--submission is for the benchmark's tasks; leave it out with --task_file"]
        given = [f"--{name}" for name in ("task_name", "glue_dir", "task_file", "data_dir") if getattr(self, name)]
        return [
            "give --task_name with --glue_dir, which holds a folder for each task, or --task_file with --data_dir, not "
            f"both; found {' and '.join(given) or 'none of them'}"
        ]
