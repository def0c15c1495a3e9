"""What a distillation of vectors reads: texts of files, or samples of shards; and the teacher's vectors for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tinybert_ds.arguments.embed import EmbedDistillArguments
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import read_manifest
from tinybert_ds.data.order import Ints, make_key, uniforms
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.data.task_tokens import judge_rows
from tinybert_ds.data.texts import VECTORS, find_texts, load_texts
from tinybert_ds.data.tokenizer import special_ids, tokenizer_fingerprint
from tinybert_ds.engine.ranks.process_group import World, run_on_main
from tinybert_ds.engine.run.plan import count_steps
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.engine.teacher_cache import kept_teacher, logits_directory, logits_key
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.shared_work.derived import cache_home
from tinybert_ds.stages.corpora import check_tokens
from tinybert_ds.stages.sentence_encoders import SentenceDirectory

logger = logging.getLogger(__name__)

_NORMS_AT_ONCE = 1 << 14
_UNIT_TOLERANCE = 1e-2
"""Of a length of 1, for vectors that were written in half precision or with few digits."""

_HELD_OUT_KEY = make_key("held out texts")


@dataclass(frozen=True)
class TextRows:
    """Texts of files as rows of one tokeniser."""

    rows: EncodedExamples
    files: tuple[Path, ...]
    home: Path  # of derived data
    max_seq_length: int
    pad_id: int

    def source(
        self, batch_size: int, *, seed: int = 0, shuffle: bool = False, numbers: Ints | None = None
    ) -> TaskSource:
        """Return the batches of all rows, or of those with some numbers."""
        return TaskSource(
            self.rows,
            global_batch_size=batch_size,
            max_seq_length=self.max_seq_length,
            seed=seed,
            pad_id=self.pad_id,
            shuffle=shuffle,
            numbers=numbers,
        )


@dataclass(frozen=True)
class EmbedData:
    """What is read in training and for `eval_loss`."""

    train: BatchSource
    held_out: BatchSource | None
    max_seq_length: int
    identity: dict[str, Any]  # what makes two runs the same
    texts: TextRows | None  # None: shards

    @property
    def column(self) -> NDArray[np.float32]:
        """The vectors of `--vector_column`, (N, V)."""
        assert self.texts is not None
        vectors: NDArray[np.float32] = self.texts.rows.columns[VECTORS]
        return vectors

    def column_kind(self) -> tuple[int, bool]:
        """Return the width of these vectors, and whether all of them have length 1."""
        vectors = self.column
        blocks = (vectors[begin : begin + _NORMS_AT_ONCE] for begin in range(0, len(vectors), _NORMS_AT_ONCE))
        unit = all(np.abs(np.linalg.norm(block, axis=1) - 1).max() < _UNIT_TOLERANCE for block in blocks)
        return vectors.shape[1], unit


def open_data(
    arguments: EmbedDistillArguments,
    teacher: SentenceDirectory | None,
    tokenizer: PreTrainedTokenizerFast,
    own_limit: int,
    *,
    prompt: str,
    world: World,
) -> EmbedData:
    """Open the texts or the shards.

    Args:
        teacher: None where it is a column.
        own_limit: Tokens that the student takes.

    Raises:
        ConfigError, DataError: What cannot be read, or not by these models.
    """
    if arguments.texts:
        length = text_length(arguments.max_seq_length, teacher, own_limit)
        return _open_texts(arguments, tokenizer, length, prompt=prompt, world=world)
    assert teacher is not None
    return _open_shards(arguments, teacher, own_limit, prompt=prompt, world=world)


def load_rows(
    arguments: EmbedDistillArguments,
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    *,
    prompt: str,
    world: World,
    vector_column: str | None = None,
) -> TextRows:
    """Tokenise --texts, or map what was tokenised before; on one rank of each host, without a collective."""
    files = find_texts(arguments.texts)
    home = cache_home(files[0].parent, arguments.cache_dir)
    rows = load_texts(
        files,
        arguments.text_column,
        tokenizer,
        max_seq_length,
        home=home,
        prompt=prompt,
        vector_column=vector_column,
        first=world.local_rank == 0,
    )
    if warning := judge_rows(rows, tokenizer, files[0], allow_unknown=arguments.allow_unknown):
        logger.warning("%s", warning)
    return TextRows(rows, tuple(files), home, max_seq_length, special_ids(tokenizer).pad)


def text_length(stated: int | None, teacher: SentenceDirectory | None, own_limit: int) -> int:
    """Return the tokens that texts are cut to, where the student takes `own_limit`.

    Raises:
        ConfigError: More than the teacher reads.
    """
    if teacher is None:
        return stated or own_limit
    length = stated or min(own_limit, teacher.max_seq_length)
    if length > teacher.max_seq_length:
        raise ConfigError(
            f"--max_seq_length {length}: the teacher {teacher.path} cuts texts to {teacher.max_seq_length} tokens; "
            f"give at most {teacher.max_seq_length}, or raise max_seq_length in its sentence_bert_config.json"
        )
    return length


def vectors_teacher(
    arguments: EmbedDistillArguments,
    data: EmbedData,
    teacher: SentenceDirectory,
    live: Callable[[], Teacher],
    *,
    same_tokenizer: bool,
    prompt: str,
    world: World,
) -> Teacher:
    """Return what gives the teacher's vectors for a batch; called on all ranks.

    Those of --texts are computed once for all rows and kept for other runs, unless `--no_teacher_cache` is given, the
    run sees no whole epoch, or the teacher is split among the ranks, which then have to ask it together. A teacher of
    another tokeniser reads the texts in its own way, and is asked about all of them beforehand.

    Raises:
        ConfigError: A teacher of another tokeniser whose vectors are not kept.
    """
    steps = count_steps(data.train, max_steps=arguments.max_steps, num_epochs=arguments.num_train_epochs)
    in_lockstep = arguments.teacher_engine == "zero3" and world.size > 1
    texts = data.texts
    if not same_tokenizer and (texts is None or arguments.no_teacher_cache or in_lockstep):
        raise ConfigError(
            f"the tokenisers of --student_model and --teacher_model {teacher.path} differ: the teacher must read the "
            "texts in its own way, beforehand, which goes with --texts, without --no_teacher_cache and without "
            "--teacher_engine zero3 on several ranks"
        )
    # Decided by the command alone: a run's numbers must not change on resume because another one has filled the cache.
    few = steps < data.train.steps_in_epoch(0)
    if texts is None or arguments.no_teacher_cache or in_lockstep or (same_tokenizer and few):
        return live()
    if not same_tokenizer:
        texts = load_rows(arguments, teacher.tokenizer, teacher.max_seq_length, prompt=prompt, world=world)
        _require_same_rows(texts, data)
    key = logits_key(
        teacher=teacher.fingerprint(),
        data=texts.rows.fingerprint,
        max_seq_length=texts.max_seq_length,
        dtype=str(inference_dtype(world.device, arguments.teacher_dtype)),
        types=None,
        padding=(texts.pad_id, teacher.config.pad_token_id),
        rotary=getattr(teacher.config, "rope_parameters", None) is not None,
    )
    directory = logits_directory(texts.home, {**key, "vectors": True})
    return kept_teacher(directory, len(texts.rows), live, texts.source, world)


def _open_texts(
    arguments: EmbedDistillArguments, tokenizer: PreTrainedTokenizerFast, length: int, *, prompt: str, world: World
) -> EmbedData:
    texts = load_rows(arguments, tokenizer, length, prompt=prompt, world=world, vector_column=arguments.vector_column)
    held_out, numbers = None, None
    if arguments.eval_fraction:
        apart = uniforms(_HELD_OUT_KEY, np.arange(len(texts.rows))) < arguments.eval_fraction
        if apart.all() or not apart.any():
            raise DataError(
                f"--eval_fraction {arguments.eval_fraction} of {len(texts.rows):,} texts leaves none for "
                f"{'training' if apart.all() else 'eval_loss'}; give more texts, or another share"
            )
        held_out = texts.source(arguments.eval_batch_size, numbers=np.flatnonzero(apart))
        numbers = np.flatnonzero(~apart)
    train = texts.source(arguments.train_batch_size, seed=arguments.seed, shuffle=True, numbers=numbers)
    identity = {"data": train.fingerprint, "eval_fraction": arguments.eval_fraction, "max_seq_length": length}
    return EmbedData(train, held_out, length, identity, texts)


def _open_shards(
    arguments: EmbedDistillArguments, teacher: SentenceDirectory, own_limit: int, *, prompt: str, world: World
) -> EmbedData:
    if prompt:
        raise ConfigError(
            f"the teacher {teacher.path} has a default prompt, and before the samples of shards stands none; give "
            "--texts, or --prompt_name none to learn what it says without"
        )
    directories = arguments.pregenerated_data
    made_for = min(read_manifest(Path(name)).sampling.max_seq_len for name in directories)
    stated = arguments.max_seq_length or min(made_for, teacher.max_seq_length)
    length = text_length(stated, teacher, own_limit)

    def opened(split: Literal["train", "eval"], batch_size: int) -> CorpusSource:
        return CorpusSource(
            directories,
            split=split,
            eval_fraction=arguments.eval_fraction,
            global_batch_size=batch_size,
            max_seq_length=length,
            seed=arguments.seed,
            one_seq=True,
            masked_lm_prob=0.0,
            short_seq_prob=arguments.short_seq_prob,
        )

    train = opened("train", arguments.train_batch_size)
    check_tokens(train, directories, teacher.path, teacher.config.vocab_size, tokenizer_fingerprint(teacher.tokenizer))
    held_out = opened("eval", arguments.eval_batch_size) if arguments.eval_fraction else None
    sources = [source for source in (train, held_out) if source is not None]
    # The other ranks find its counts beside the corpus.
    run_on_main(world, lambda: [source.samples_in_epoch(0) for source in sources])
    return EmbedData(train, held_out, length, {**train.identity, "max_seq_length": length}, None)


def _require_same_rows(texts: TextRows, data: EmbedData) -> None:
    own = 0 if data.texts is None else len(data.texts.rows)
    if len(texts.rows) != own:
        raise DataError(
            f"--texts were read twice, for two tokenisers, and held {own:,} and then {len(texts.rows):,} texts; they "
            "must stay as they are while they are read"
        )
