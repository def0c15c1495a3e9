"""The arguments of the preparation of a corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import data, like, machine, result

_SAMPLING = groups.Sampling.__dataclass_fields__


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(groups.Casing, groups.Sampling):
    """Turn text into the shards that general distillation reads.

    Killed and started again with the same command, it redoes only what is unfinished. Started by `mpirun`, `srun` or
    by hand on several hosts that share the output directory, it shares the work between all processes; the shards do
    not depend on how many there are. The flags of samples are defaults of training, kept in the manifest; they do not
    change the shards.
    """

    prog = "pregenerate_training_data.py"

    bert_model: str = like(groups.BERT_MODEL)
    train_corpus: list[str] = data(
        "Files, directories or patterns: text (a sentence a line, a blank line between documents), JSON lines (.jsonl; "
        "a document a line), both plain or .gz, .xz, .zst; .parquet (a document a row). Or give --dataset, each record "
        "of which is a document.",
        [],
        path=True,
    )
    output_dir: str = like(groups.OUTPUT_DIR, help="Directory that is new, empty, or holds this very corpus.")
    split_sentences: bool = result("Lines are paragraphs: split them into sentences.", False)
    language: str = result("Language of --split_sentences, a code such as de or zh.", "en", resolved=True)
    num_workers: int = like(groups.NUM_WORKERS)
    local_rank: int = like(groups.LOCAL_RANK)
    shard_bytes: int | None = result(
        "Bytes of text of a shard. Default: a power of two, 4 MiB to 256 MiB, for about 64 shards.", None, least=16
    )
    extend: bool = data("Add the inputs that the finished corpus in --output_dir has not yet.", False)
    text_field: str = result("Name of the text in JSON lines, Parquet and datasets.", "text", metavar="NAME")
    skip_bad_input: bool = result("Leave out what cannot be read, and count and list it.", False)
    allow_unknown: bool = like(groups.ALLOW_UNKNOWN)
    dataset: str | None = like(groups.DATASET)
    dataset_config: str | None = like(groups.DATASET_CONFIG)
    dataset_split: str = data("Split of --dataset.", "train", metavar="NAME")
    dataset_revision: str | None = data("Revision of --dataset on the hub; state it to repeat.", None)
    dedup: bool = result("Leave out documents whose lines were all there before, in order.", False)
    min_chars: int = result("Leave out documents of fewer characters.", 0, least=0)
    max_chars: int | None = result("Leave out documents of more characters.", None, least=1)
    min_letters: float = result(
        "Leave out documents with a smaller share of letters, of any script, but for white space.", 0.0, least=0, most=1
    )
    max_seq_len: int = data("Tokens of a sample.", 128, least=5)
    short_seq_prob: float = like(_SAMPLING["short_seq_prob"], 0.1, help="Share of documents cut into shorter samples.")
    masked_lm_prob: float = like(_SAMPLING["masked_lm_prob"], 0.0, help="Share of tokens to mask; 0 masks none.")
    max_predictions_per_seq: int = like(
        _SAMPLING["max_predictions_per_seq"], 20, help="Most masked tokens of a sample."
    )
    do_whole_word_mask: bool = like(_SAMPLING["do_whole_word_mask"], help="Mask whole words.")
    one_seq: bool = like(_SAMPLING["one_seq"], help="No random second sentences.")
    epochs_to_generate: int | None = machine(
        "Means nothing any more: samples are made while training, for any number of epochs.", None
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if bool(self.train_corpus) == (self.dataset is not None):
            found.append("give one of --train_corpus and --dataset")
        if not re.fullmatch(r"[a-z]{2,3}(-\w+)*", self.language):
            found.append(f"--language is {self.language!r}; it must be a code such as en, de or zh")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            found.append(f"--max_chars {self.max_chars} is below --min_chars {self.min_chars}")
        return found
