"""The arguments of a student's closed-form start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import like, result

CALIBRATION_TOKENS = result(
    "Tokens of text that a student is fitted on when it starts from its teacher; at most all there are.",
    200_000,
    least=1,
)

PRIOR_WEIGHT = 0.01


@dataclass(frozen=True, kw_only=True)
class InheritArguments(groups.TaskName, groups.StatedLabels, groups.TaskRows):
    """Start students from their teacher in closed form: from a pre-trained one on text, from a fine-tuned one on the
    training rows of its task. Writes student directories that distillation goes on from."""

    prog = "inherit_student.py"

    teacher_model: str = like(groups.TEACHER_MODEL, help="Hugging Face directory of the teacher.")
    student_model: list[str] = like(
        groups.STUDENT_MODEL,
        help="The student: a config.json, a directory with one, or a shipped name (4L_312, 6L_768, 3L_192); or a "
        "directory with weights that general distillation wrote, which are kept in part (--prior_weight). Given "
        "several times, each goes to a directory of its own name inside --output_dir.",
        repeat=True,
    )
    student_tokenizer: str | None = like(groups.STUDENT_TOKENIZER)
    output_dir: str = like(
        groups.OUTPUT_DIR, help="Directory of the student. A student that is finished there is not made again."
    )
    pregenerated_data: list[str] = like(
        groups.Corpora.__dataclass_fields__["pregenerated_data"],
        [],
        help="Directories of shards made by data_tools/pregenerate_training_data.py, for a pre-trained teacher.",
    )
    data_dir: str | None = like(
        groups.DATA_DIR, None, help="Instead of shards, for a fine-tuned teacher: directory of the task's files."
    )
    calibration_tokens: int = like(CALIBRATION_TOKENS)
    prior_weight: float = result(
        "How strongly a student that has weights keeps them: 0.001 takes over nearly all that the teacher says, 1 "
        "hardly moves. Its embeddings and neurons stay, its head is made anew. A student without weights has none.",
        PRIOR_WEIGHT,
        above=0,
        most=1e6,
    )
    max_seq_length: int | None = like(
        groups.MAX_SEQ_LENGTH,
        help="Longest row in tokens. Default: as the shards were made; 64 for single sentences, 128 for pairs.",
    )
    layer_map: str = like(groups.LayerLosses.__dataclass_fields__["layer_map"], stage=())
    teacher_dtype: Literal["auto", "fp32", "bf16", "fp16"] = like(groups.Teacher.__dataclass_fields__["teacher_dtype"])
    seed: int = like(groups.SEED, help="Seed of the order of the text, and of weights that no teacher has.")

    def problems(self) -> list[str]:
        found = super().problems()
        of_task = self.data_dir is not None and (self.task_name is None) != (self.task_file is None)
        named = any(value is not None for value in (self.data_dir, self.task_name, self.task_file))
        if bool(self.pregenerated_data) == named or (named and not of_task):
            found.append(
                "give either --pregenerated_data with shards, or --data_dir with one of --task_name and --task_file"
            )
        if self.teacher_labels and not named:
            found.append("--teacher_labels is for a fine-tuned teacher; leave it out with --pregenerated_data")
        return found
