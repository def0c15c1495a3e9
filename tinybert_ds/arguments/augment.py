"""The arguments of data augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import data, like, result


@dataclass(frozen=True, kw_only=True)
class AugmentArguments(groups.KnownOrOwnTask, groups.Casing, groups.StatedLabels, groups.Machine):
    """Write train_aug.tsv beside a task's train.tsv: each row, and behind it variants with other words in its texts.

    Words of one piece are replaced by what a masked language model expects in their place, others by near words of
    GloVe (arXiv 1909.10351, section 3.2). Started again after it was killed, it goes on; on several GPUs or hosts start
    it with `deepspeed` or `mpirun`.
    """

    prog = "data_augmentation.py"

    pretrained_bert_model: str = data("A BERT with its masked-LM head and tokeniser.", path=True)
    glove_embs: str | None = data("GloVe text or fastText .vec, plain or .gz, .xz, .zst.", None, path=True)
    no_glove: bool = data("Words of several pieces stay as they are.", False)
    glove_vocab_size: int = result(
        "Words read of --glove_embs; the default is the published number.", 100000, resolved=True, least=1
    )
    data_dir: str | None = like(groups.DATA_DIR, None, help="Instead of --glue_dir: the directory of the task's files.")
    N: int | None = result(
        "Variants to draw of each text. Default: the published number of the task; 30.", None, resolved=True, least=1
    )
    M: int = result("Candidates of a word.", 15, least=1)
    p: float = result("Probability that a word is replaced.", 0.4, least=0, most=1)
    seed: int = like(groups.SEED, help="Seed of the draws; each row has its own.")
    chinese: bool = result(
        "Replace Chinese words as well: each character by itself, or with --word_list those of the list.", False
    )
    word_list: str | None = like(groups.WORD_LIST)
    teacher_filter: str | None = data("Fine-tuned teacher that judges the variants.", None, path=True)
    teacher_confidence: float = result(
        "Variants whose likeliest label has a lower probability are dropped.", 0.9, resolved=True, least=0, most=1
    )
    allow_unknown: bool = like(groups.ALLOW_UNKNOWN)
    local_rank: int = like(groups.LOCAL_RANK)
    glue_dir: str | None = like(groups.GLUE_DIR)
    num_workers: int | None = like(groups.NUM_WORKERS, None, help="Processes on CPU. Default: one for each core.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = result(
        "Of the models; auto: fp16 on a GPU, bf16 on a CPU that computes it, fp32 elsewhere.", "auto", resolved=True
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if (self.glove_embs is None) == (not self.no_glove):
            found.append("give one of --glove_embs and --no_glove")
        if self.word_list is not None and not self.chinese:
            found.append("--word_list is for Chinese words: add --chinese, or drop it")
        if (self.glue_dir is None) == (self.data_dir is None):
            found.append("give one of --glue_dir and --data_dir")
        if self.task_file is not None and self.data_dir is None:
            found.append("--task_file needs --data_dir: where the task's files are")
        return found
