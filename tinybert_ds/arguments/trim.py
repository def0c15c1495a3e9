"""The arguments of the trimming of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import data, like, machine, result


@dataclass(frozen=True, kw_only=True)
class TrimArguments(groups.Casing):
    """Write the part of a model's vocabulary that a corpus needs: its tokeniser, and the model with the embeddings of
    those tokens alone.

    Special tokens and bytes are always kept. What the part cannot spell as the whole does is counted and printed.
    Shards and a student of that vocabulary learn from the untrimmed teacher (--student_tokenizer). Killed and started
    again with the same command, it counts only what is left; started by `mpirun`, `srun` or by hand on several hosts
    that share the output directory, the inputs are shared between all processes.
    """

    prog = "trim_vocabulary.py"

    model: str = data("Hugging Face directory of the model, such as XLM-R, with its tokeniser.", path=True)
    corpus: list[str] = data(
        "What the vocabulary is for: directories of shards made with the model's tokeniser; and files, directories or "
        "patterns of text, JSON lines and Parquet, as pregenerate_training_data.py takes them.",
        path=True,
    )
    keep: int = result("Tokens to keep at most; what the corpus does not use is not kept.", 40000, least=1)
    output_dir: str = like(groups.OUTPUT_DIR, help="Directory that is new, empty, or holds this very vocabulary.")
    text_field: str = result("Name of the text in JSON lines and Parquet.", "text", metavar="NAME")
    skip_bad_input: bool = result("Leave out what cannot be read, and count it.", False)
    local_rank: int = like(groups.LOCAL_RANK)
    allow_unknown: bool = machine("Go on although the tokeniser does not know most of the words.", False)
