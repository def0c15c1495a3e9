"""The corpora of a general distillation, as its arguments describe them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tinybert_ds.arguments import GeneralDistillArguments
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import read_manifest
from tinybert_ds.data.phases import PhasedSource, phase_steps
from tinybert_ds.data.verification import Verification
from tinybert_ds.engine.ranks.process_group import World, gather_objects, run_on_main
from tinybert_ds.engine.run.plan import count_steps
from tinybert_ds.errors import ConfigError, DataError, raise_all
from tinybert_ds.progress import progress_bar

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Between two looks at how far --verify_data is."""


@dataclass(frozen=True)
class Corpora:
    """What is read in training and for `eval_loss`."""

    train: BatchSource
    held_out: CorpusSource | None
    total_steps: int
    identity: dict[str, Any]  # what makes two runs the same
    longest: int  # tokens of the longest sample
    verification: Verification | None  # on one rank of each host, with --verify_data

    def finish_verification(self, alive: Callable[[str], None]) -> None:
        """Wait until --verify_data has seen all files on all hosts; call it on all ranks.

        Raises:
            DataError: On all ranks, the damage that any of them has found.
        """
        own, before = self.verification, None
        total = 0 if own is None else own.total_bytes
        with progress_bar(total=total, desc="--verify_data", unit="B", unit_scale=True) as bar:
            while True:
                found = gather_objects(None if own is None else own.progress(within=_LOOK_SECONDS))
                checks = [progress for progress in found if progress is not None]
                raise_all([progress.damage for progress in checks if progress.damage is not None][:1], DataError)
                if all(progress.ended for progress in checks):
                    break
                done = sum(progress.hashed_bytes for progress in checks)
                bar.update((checks[0].hashed_bytes if own is not None else 0) - bar.n)
                if done != before:
                    alive(f"--verify_data has read {done} of {sum(each.total_bytes for each in checks)} bytes")
                before = done
        if checks:
            logger.info("--verify_data: all files of the corpus are what was written")


def open_corpora(arguments: GeneralDistillArguments, vocab_size: int, tokenizer: str, world: World) -> Corpora:
    """Open what --pregenerated_data names; the first rank counts the samples of corpora that are new, for all.

    `vocab_size` and `tokenizer` are as in `check_tokens`.

    Raises:
        ConfigError, DataError: unusable corpora, tokens of another tokeniser, or a batch that the ranks cannot share.
    """
    arguments = with_length(arguments)
    _check_batches(arguments, world)
    verification = None
    if arguments.verify_data and world.local_rank == 0:
        verification = Verification([directory for directory, _ in arguments.corpora])
    sources = [
        _open(arguments, "train", length, arguments.phase_batch_size(length), verification)
        for length, _ in arguments.phase_list
    ]
    directories = [directory for directory, _ in arguments.corpora]
    flag = "--teacher_model" if arguments.student_tokenizer is None else "--student_tokenizer"
    reader = arguments.student_tokenizer or arguments.teacher_model
    check_tokens(sources[0], directories, reader, vocab_size, tokenizer, flag)
    longest = max(length for length, _ in arguments.phase_list)
    held_out = None
    if arguments.eval_fraction:
        held_out = _open(arguments, "eval", longest, arguments.eval_batch_size, None)

    def count() -> int:
        steps = count_steps(sources[0], max_steps=arguments.max_steps, num_epochs=arguments.num_train_epochs)
        _join(sources, arguments, steps)
        if held_out is not None:
            held_out.samples_in_epoch(0)
        return steps

    total_steps = run_on_main(world, count)  # the other ranks find its counts beside the corpus
    identity = dict(sources[0].identity)
    if len(sources) > 1:
        identity["phases"] = arguments.phase_list
    train = _join(sources, arguments, total_steps)
    return Corpora(train, held_out, total_steps, identity, longest, verification)


def with_length(arguments: GeneralDistillArguments) -> GeneralDistillArguments:
    """Return the arguments with the sample length that the corpora were made for, where the command line gives none.

    Raises:
        ConfigError: the corpora were made for different lengths, or for one that is no length of a sample.
        DataError: a directory holds no corpus.
    """
    if arguments.phases is not None or arguments.max_seq_length is not None:
        return arguments
    lengths = {name: read_manifest(Path(name)).sampling.max_seq_len for name, _ in arguments.corpora}
    if len(set(lengths.values())) > 1:
        raise ConfigError(
            "the corpora of --pregenerated_data were made for samples of different lengths: "
            f"{', '.join(f'{length} tokens in {name}' for name, length in lengths.items())}. Give --max_seq_length or "
            "--phases"
        )
    arguments = replace(arguments, max_seq_length=next(iter(lengths.values())))
    raise_all(arguments.problems(), ConfigError)
    return arguments


def _join(sources: Sequence[CorpusSource], arguments: GeneralDistillArguments, total_steps: int) -> BatchSource:
    if len(sources) == 1:
        return sources[0]
    steps = phase_steps([share for _, share in arguments.phase_list], total_steps)
    return PhasedSource(sources, steps)


def _check_batches(arguments: GeneralDistillArguments, world: World) -> None:
    """Raise `ConfigError` unless the ranks can share the batches of all phases evenly."""
    parts = world.size * arguments.gradient_accumulation_steps
    problems = []
    for length, _ in arguments.phase_list[1:]:
        rows = arguments.phase_batch_size(length)
        if rows % parts:
            problems.append(
                f"the phase of {length} tokens has {rows} samples a step, which {world.size} ranks x "
                f"{arguments.gradient_accumulation_steps} accumulation steps cannot share evenly; give another "
                "--train_batch_size or fewer --gradient_accumulation_steps"
            )
    raise_all(problems, ConfigError)


def check_tokens(
    source: CorpusSource,
    directories: Sequence[str],
    reader: str,
    vocab_size: int,
    tokenizer: str,
    flag: str = "--teacher_model",
) -> None:
    """Raise `ConfigError` unless teacher and student read every token as it was meant.

    Args:
        reader: Directory of the tokeniser that must have made the shards, `tokenizer` is its fingerprint.
        vocab_size: Entries of the vocabulary that they are read by.
        flag: What names `reader` on the command line.
    """
    shards = ", ".join(directories)
    if source.tokenizer_fingerprint != tokenizer:
        raise ConfigError(
            f"the shards in {shards} were made with another tokeniser than that of {flag} {reader}; make them anew "
            f"with --bert_model {reader} and the same casing flags"
        )
    if source.vocab_size > vocab_size:
        raise ConfigError(
            f"the shards in {shards} have token ids up to {source.vocab_size - 1}, but {flag} {reader} has embeddings "
            f"for {vocab_size} tokens: its tokeniser files do not belong to its config.json. Restore the directory, "
            "and make the shards anew with its own tokeniser"
        )


def _open(
    arguments: GeneralDistillArguments,
    split: Literal["train", "eval"],
    length: int,
    batch_size: int,
    verification: Verification | None,
) -> CorpusSource:
    directories, weights = zip(*arguments.corpora, strict=True)
    training = split == "train"
    return CorpusSource(
        directories,
        split=split,
        eval_fraction=arguments.eval_fraction,
        global_batch_size=batch_size,
        max_seq_length=length,
        seed=arguments.seed,
        weights=weights if training and weights[0] is not None else None,
        padding=arguments.padding,
        one_seq=arguments.one_seq or None,
        full_sentences=arguments.full_sentences or None,
        masked_lm_prob=arguments.masked_lm_prob,
        whole_word=arguments.do_whole_word_mask or None,
        short_seq_prob=arguments.short_seq_prob,
        max_predictions_per_seq=arguments.max_predictions_per_seq,
        max_samples=arguments.phase_max_samples(length) if training else None,
        verification=verification,
        word_list=arguments.word_list,
    )
