"""The arguments of writing down what a model says of a task's rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import data, like, result

OUTPUT_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class LabelRowsArguments(groups.TaskPlace, groups.Casing, groups.StatedLabels, groups.Machine):
    """Write what a model says of each row of a task beside the row, for a prediction stage that needs no teacher.

    Rows need no labels. Any number of processes of any launcher share the work; started again after it was killed, it
    goes on.
    """

    prog = "label_rows.py"

    model: str = data("Hugging Face directory of the model, fine-tuned on the task.", path=True)
    output: str = data("File to write: .jsonl or .parquet.", path=True)
    split: str = data("Split of the task whose rows are read.", "train")
    column: str = data("Name of the column of the answers.", "teacher")
    max_seq_length: int | None = like(groups.MAX_SEQ_LENGTH)
    cache_dir: str | None = like(groups.CACHE_DIR)
    allow_unknown: bool = like(groups.ALLOW_UNKNOWN)
    pooler_relu: bool = like(groups.POOLER_RELU, help="The model has the ReLU of the published fine-tuned TinyBERTs.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = result(
        "Of the model; auto: fp16 on a GPU, bf16 on a CPU that computes it, fp32 elsewhere.", "auto", resolved=True
    )
    local_rank: int = like(groups.LOCAL_RANK)

    def problems(self) -> list[str]:
        found = super().problems()
        if PurePath(self.output).suffix.lower() not in OUTPUT_SUFFIXES:
            found.append(f"--output {self.output}: give a file whose name ends in {' or '.join(OUTPUT_SUFFIXES)}")
        return found
