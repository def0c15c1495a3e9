"""The arguments of the commands for sentence vectors: their distillation and their evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.general import GeneralDistillArguments
from tinybert_ds.arguments.inherit import CALIBRATION_TOKENS
from tinybert_ds.arguments.option import Command, data, like, result
from tinybert_ds.arguments.task import TaskDistillArguments
from tinybert_ds.arguments.training import TrainingArguments

_OF_GENERAL = GeneralDistillArguments.__dataclass_fields__
_vector_weight = partial(result, stage=("vectors",), least=0)


@dataclass(frozen=True, kw_only=True)
class StsFiles(Command):
    """Files of scored pairs."""

    sts: list[str] = data(
        "Files of sentence pairs with a score of their likeness, .tsv, .csv, .jsonl or .parquet: the evaluation is "
        "Spearman's correlation of the scores with the cosines of the vectors, for each file.",
        [],
        path=True,
        metavar="FILE",
    )
    sts_columns: list[str] = data(
        "Columns of the two sentences and the score in --sts.", ["sentence1", "sentence2", "score"], goes_with="sts"
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if len(self.sts_columns) != 3:
            found.append(f"--sts_columns are {self.sts_columns}; give three: two sentences and their score")
        return found


@dataclass(frozen=True, kw_only=True)
class EmbedDistillArguments(StsFiles, groups.Teacher, TrainingArguments):
    """Distil a sentence encoder: a student learns its teacher's vectors on texts without labels."""

    prog = "embed_distill.py"
    stages = ("vectors",)

    teacher_model: str | None = like(
        groups.TEACHER_MODEL,
        None,
        help="sentence-transformers directory of the teacher; its pooling, dense layers, normalisation and prompts are "
        "read from its files.",
    )
    student_model: str = like(
        groups.STUDENT_MODEL,
        help="The student: a config.json, a directory with one, a shipped name (4L_312, 6L_768, 3L_192), or a "
        "directory with weights, such as one that general distillation wrote.",
    )
    texts: list[str] = data(
        "Files of texts: .txt (one a line), .tsv, .csv, .jsonl, .json, .parquet, directories of `datasets`; texts may "
        "be .gz, .xz or .zst.",
        [],
        path=True,
        metavar="FILE",
    )
    text_column: list[str] = data(
        "Columns of --texts that hold texts, each of them one of its own.", ["text"], goes_with="texts"
    )
    vector_column: str | None = data(
        "Column of --texts with the teacher's vector for each text, a list of numbers in .jsonl, .json or .parquet: no "
        "teacher is needed then.",
        None,
    )
    pregenerated_data: list[str] = like(
        groups.Corpora.__dataclass_fields__["pregenerated_data"],
        [],
        help="Instead of --texts: directories of shards made by data_tools/pregenerate_training_data.py; a sample is "
        "some sentences of one document.",
    )
    short_seq_prob: float | None = like(
        groups.Sampling.__dataclass_fields__["short_seq_prob"], goes_with="pregenerated_data"
    )
    max_seq_length: int | None = like(
        groups.MAX_SEQ_LENGTH,
        help="Tokens that a text is cut to, in training and by the finished student. Default: what the teacher cuts "
        "them to, or as the shards were made.",
    )
    prompt_name: str | None = data(
        "Name of the teacher's prompt that stands before each text, for both models, or none. Default: the teacher's "
        "default prompt, if it has one.",
        None,
    )
    l2_weight: float = _vector_weight(
        "Factor of the squared distance of the student's vectors from the teacher's; 0 leaves it out.", 1.0
    )
    cosine_weight: float = _vector_weight("Factor of 1 - cosine of the two vectors of a text; 0 leaves it out.", 0.0)
    relation_weight: float = _vector_weight(
        "Factor of the squared differences of the two similarity matrices of a batch; 0 leaves it out.", 0.0
    )
    pooling: Literal["teacher", "mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] = result(
        "What of the student's token states becomes its vector. teacher: as the teacher's, or as the student's own "
        "files say; the mean where the teacher is a column.",
        "teacher",
        resolved=True,
    )
    init: Literal["auto", "teacher", "svd", "random"] = like(
        _OF_GENERAL["init"],
        help="Weights of a student that has none. teacher: every layer in closed form from the teacher's; svd: "
        "embeddings of the teacher's leading singular vectors; random; auto: teacher where the architectures have a "
        "closed form, else random. The projection to the teacher's width is fitted to its vectors in any case.",
    )
    calibration_tokens: int = like(CALIBRATION_TOKENS)
    layer_map: str = like(groups.LayerLosses.__dataclass_fields__["layer_map"], stage=("vectors",))
    eval_fraction: float = data("Share of the texts held out for eval_loss; 0: none.", 0.0, least=0, below=1)
    eval_step: int = like(groups.EVAL_STEP, 200, help="Steps between two evaluations.")
    cache_dir: str | None = like(
        groups.TaskRows.__dataclass_fields__["cache_dir"],
        help="Folder of derived data: tokenised texts, the teacher's vectors. Default: .tinybert_cache beside the "
        "first of --texts, or where that cannot be written ~/.cache/tinybert_ds.",
        goes_with="texts",
    )
    allow_unknown: bool = like(groups.ALLOW_UNKNOWN, goes_with="texts")
    no_teacher_cache: bool = like(
        TaskDistillArguments.__dataclass_fields__["no_teacher_cache"],
        help="Ask the teacher about every batch. Otherwise a run of at least one epoch over --texts keeps its vectors "
        "in the folder of derived data (--cache_dir), for later epochs, starts and students.",
        stage=("vectors",),
        goes_with="texts",
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if bool(self.texts) == bool(self.pregenerated_data):
            found.append("give either --texts with files, or --pregenerated_data with shards")
        if not (self.l2_weight or self.cosine_weight or self.relation_weight):
            found.append("--l2_weight, --cosine_weight and --relation_weight are all 0: nothing is learned")
        if self.relation_weight and self.gradient_accumulation_steps > 1:
            found.append(
                f"--relation_weight compares all pairs of a batch, which --gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} cuts in parts; lower --train_batch_size instead"
            )
        if (self.teacher_model is None) == (self.vector_column is None):
            found.append("give either --teacher_model DIR, or --vector_column NAME with the teacher's vectors")
        if self.pregenerated_data and self.prompt_name not in (None, "none"):
            found.append("--prompt_name is for --texts: shards hold tokens, before which no prompt stands")
        return found + self._column_problems()

    def _column_problems(self) -> list[str]:
        """What is wrong where the teacher is a column."""
        if self.vector_column is None:
            return []
        found = []
        if self.pregenerated_data:
            found.append("--vector_column is a column of --texts; shards have none")
        if len(self.text_column) > 1:
            found.append(f"--text_column {' '.join(self.text_column)}: --vector_column holds the vector of one text")
        if self.init in ("teacher", "svd"):
            found.append(f"--init {self.init} needs --teacher_model; a column has no weights")
        if self.prompt_name is not None:
            found.append("--prompt_name is a prompt of --teacher_model; write it into the texts that a column is for")
        return found


@dataclass(frozen=True, kw_only=True)
class EmbedEvaluateArguments(StsFiles, groups.Stage):
    """Judge a sentence encoder: likeness of sentences, and retrieval of documents."""

    prog = "embed_evaluate.py"

    model: str = data("sentence-transformers directory of the encoder.", path=True)
    output_dir: str = like(groups.OUTPUT_DIR, help="Directory for eval_results.json.")
    retrieval: list[str] = data(
        "Directories in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv. The evaluation is nDCG@10.",
        [],
        path=True,
        metavar="DIR",
    )
    retrieval_split: str = data("Which qrels/SPLIT.tsv is read.", "test", goes_with="retrieval")
    document_model: str | None = data(
        "Directory of the encoder of the documents, such as the teacher, whose vectors the student's queries then "
        "search. Default: --model.",
        None,
        path=True,
        goes_with="retrieval",
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.sts and not self.retrieval:
            found.append("give --sts FILE, --retrieval DIR, or both: there is nothing to judge")
        names = [Path(directory).resolve().name for directory in self.retrieval]
        if alike := sorted({name for name in names if names.count(name) > 1}):
            found.append(
                f"--retrieval has two directories of the name {', '.join(alike)}; figures go by that name: rename one"
            )
        return found
