"""The arguments of a student's closed-form start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinybert_ds.arguments.common import option


@dataclass(frozen=True, kw_only=True)
class InheritArguments:
    """Start students from their teacher in closed form: from a pre-trained one on text, from a fine-tuned one on a
    task's training rows. Writes student directories that distillation goes on from."""

    teacher_model: str = option("Hugging Face directory of the teacher, fine-tuned with --task_name.")
    student_model: list[str] = option(
        "The student: a config.json, a directory with one, or a shipped name (4L_312, 6L_768, 3L_192). Given several "
        "times, each goes to a directory of its own name inside --output_dir.",
        action="extend",
    )
    output_dir: str = option("Directory of the student. A student that is finished there is not made again.")
    pregenerated_data: list[str] | None = field(
        default=None,
        metadata={"help": "Directories of shards made by data_tools/pregenerate_training_data.py."},
    )
    data_dir: str | None = option("Instead of shards: directory of a task's files, whose training rows are read.", None)
    task_name: str | None = option("With --data_dir: name of a known task, such as sst-2.", None)
    task_file: str | None = option("With --data_dir: YAML file that describes a task of your own.", None)
    calibration_tokens: int = option("Tokens of text that the student is fitted on; at most all there are.", 200_000)
    max_seq_length: int | None = option(
        "Longest row in tokens. Default: as the shards were made; 64 for single sentences, 128 for pairs.", None
    )
    layer_map: str = option(
        "Teacher states for the student states 0..M (0: embeddings): uniform, last, first, or a list such as 0,4,8,12.",
        "uniform",
    )
    teacher_dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "Precision of the teacher. auto: fp16 on GPU, bf16 on a CPU that computes it, fp32 elsewhere.", "auto"
    )
    teacher_labels: str | None = option(
        "Names of the fine-tuned teacher's outputs in its order, if its config has only LABEL_0 ... or other names.",
        None,
    )
    seed: int = option("Seed of the order of the text.", 42)
    cache_dir: str | None = option("Folder of the task's tokenised rows. Default: .tinybert_cache in --data_dir.", None)
    do_lower_case: bool = option("Force lower-casing. Default: what the model directory says.", False)
    no_lower_case: bool = option("Force keeping capitals. Default: what the model directory says.", False)
    no_cuda: bool = option("Compute on the CPU even where there is a GPU.", False)
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
    def stated_labels(self) -> list[str] | None:
        """`--teacher_labels` as a list."""
        return self.teacher_labels.split(",") if self.teacher_labels else None

    def problems(self) -> list[str]:
        """Everything that is wrong with the values by themselves, one sentence each."""
        found = []
        task = self.data_dir is not None and (self.task_name is None) != (self.task_file is None)
        named = any(value is not None for value in (self.data_dir, self.task_name, self.task_file))
        if bool(self.pregenerated_data) == named or (named and not task):
            found.append(
                "give either --pregenerated_data with shards, or --data_dir with one of --task_name and --task_file"
            )
        for name in ("calibration_tokens", "max_seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"--{name} is {value}; it must be at least 1")
        if self.seed < 0:
            found.append(f"--seed is {self.seed}; it must not be negative")
        if self.do_lower_case and self.no_lower_case:
            found.append("--do_lower_case and --no_lower_case contradict each other; give one of them")
        if self.teacher_labels and not named:
            found.append("--teacher_labels is for a fine-tuned teacher; leave it out with --pregenerated_data")
        return found
