"""The arguments of general distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.common import DistillationArguments, option


@dataclass(frozen=True, kw_only=True)
class GeneralDistillArguments(DistillationArguments):
    """General distillation: learn from a pre-trained teacher on unlabelled text."""

    pregenerated_data: str = option("Directory of shards made by data_tools/pregenerate_training_data.py.")
    teacher_model: str = option("Hugging Face directory of the pre-trained teacher.")
    student_model: list[str] = option(
        "The student: a config.json, a directory with one, a shipped name (4L_312, 6L_768, 3L_192), or with "
        "--continue_train a directory with weights. Given several times, the students learn from one teacher pass, "
        "each in a directory of its own name inside --output_dir.",
        action="extend",
    )
    continue_train: bool = option("Start from the weights in --student_model.", False)
    init_embeddings: Literal["random", "svd"] = option(
        "Embeddings of a student that starts without weights: random, or the leading singular vectors of the "
        "teacher's.",
        "random",
    )
    max_seq_length: int = option("Longest sample in tokens, [CLS] and [SEP] included.", 128)
    eval_step: int | None = option("Published name of --save_steps in this command.", None)
    eval_fraction: float = option("Share of documents held out for eval_loss; 0: none.", 0.005)
    eval_steps: int | None = option("Steps between two evaluations of eval_loss. Default: --save_steps.", None)
    one_seq: bool = option("Samples of one segment: no sentence pairs. Default: as the shards were made.", False)
    short_seq_prob: float | None = option(
        "Share of documents cut to a random shorter length. Default: as the shards were made.", None
    )
    masked_lm_prob: float | None = option(
        "Share of tokens masked, anew in every epoch; 0: none. Default: as the shards were made.", None
    )
    max_predictions_per_seq: int | None = option(
        "Most masked tokens in a sample. Default: as the shards were made.", None
    )
    do_whole_word_mask: bool = option("Mask whole words. Default: as the shards were made.", False)
    reduce_memory: bool = option("Means nothing any more: shards are always memory-mapped.", False)

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints, under either of the flag's names."""
        return self.save_steps or self.eval_step or 1000

    def problems(self) -> list[str]:
        found = super().problems()
        if self.save_steps and self.eval_step and self.save_steps != self.eval_step:
            found.append(
                f"--save_steps {self.save_steps} and --eval_step {self.eval_step} are two names of one setting here; "
                "give one of them"
            )
        if self.continue_train and self.init_embeddings != "random":
            found.append(
                f"--init_embeddings {self.init_embeddings} and --continue_train contradict each other: the student's "
                "embeddings are in --student_model; drop one of them"
            )
        if not 0 <= self.eval_fraction < 1:
            found.append(f"--eval_fraction is {self.eval_fraction}; it must be in [0, 1)")
        if len(self.student_model) > 1 and self.resume not in ("auto", "never"):
            found.append(f"--resume {self.resume} names the checkpoint of one student; several students need auto")
        if self.max_seq_length < 8:
            found.append(f"--max_seq_length is {self.max_seq_length}; it must be at least 8")
        for name in ("short_seq_prob", "masked_lm_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                found.append(f"--{name} is {value}; it must be in [0, 1]")
        return found
