"""Turns text into the shards that general distillation reads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from data_tools.cleaning import Filters
from data_tools.corpus_directory import (
    EXTENDED,
    CorpusIdentity,
    WorkDirectory,
    check_output_directory,
    describe_report,
    earlier_hashes,
    finish_corpus,
    unknown_words,
)
from data_tools.corpus_job import Job
from data_tools.corpus_processes import run_job
from data_tools.input_files import TextInput, describe_left_out, find_dataset, find_inputs
from data_tools.input_groups import group_inputs
from data_tools.ranks import Ranks, find_ranks
from data_tools.tokenise_text import TextOptions
from tinybert_ds.arguments import identity_of, parse
from tinybert_ds.arguments.prepare import PrepareArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.data.indexed import FileRecord, hash_file, token_dtype
from tinybert_ds.data.manifest import MANIFEST_NAME, Manifest, Sampling, continuations, open_corpus
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids, tokenizer_fingerprint, tokenizer_json
from tinybert_ds.errors import ConfigError, DataError, UserError
from tinybert_ds.foreign_text import listed_paths
from tinybert_ds.shared_work.claims import describe_differences

SMALLEST_SHARD_BYTES, LARGEST_SHARD_BYTES = 1 << 22, 1 << 28
_SHARDS = 64
_ATTEMPTS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the corpus that the command line describes; say what is there."""
    options = parse(PrepareArguments, arguments)
    output_dir = Path(options.output_dir)
    ranks = find_ranks()
    if ranks.rank == 0:
        _say_what_is_ignored(options)
        for line in describe_left_out(options.train_corpus or []):
            print(line)
    inputs = _find_inputs(options)
    identity = _identity(options)
    begin = time.monotonic()
    for attempt in range(_ATTEMPTS):
        check_output_directory(output_dir)
        try:
            outcome = _prepare(options, inputs, identity, ranks)
        except FileNotFoundError as error:
            gone = [str(item.path) for item in inputs if item.path is not None and not item.path.is_file()]
            if gone:
                raise DataError(
                    f"the input {gone[0]!r} is not there any more. Bring it back and run the same command again."
                ) from error
            continue  # another process has finished the corpus and removed what this one was looking at
        except OSError as error:
            raise DataError(
                f"cannot write to {str(output_dir)!r}: {error}. Make room or mend the directory, and run the "
                "same command again."
            ) from error
        if ranks.rank == 0:
            if not outcome.is_new and attempt == 0:
                _say_what_is_there(output_dir, outcome)
            _print_counts(outcome.manifest, time.monotonic() - begin if outcome.is_new else None)
        return
    raise DataError(f"{str(output_dir)!r} does not keep what is written there. Does something remove its files?")


class _Outcome(NamedTuple):
    manifest: Manifest
    is_new: bool  # whether anything was written
    beyond: Sequence[str] = ()  # inputs that a corpus that was there has besides those asked for


def _prepare(
    options: PrepareArguments, inputs: Sequence[TextInput], identity: CorpusIdentity, ranks: Ranks
) -> _Outcome:
    """Make the corpus, or find that it is there."""
    directory = Path(options.output_dir)
    work = WorkDirectory(directory)
    base = None
    if (directory / MANIFEST_NAME).is_file():
        base = open_corpus(directory).manifest
        _check_same_options(directory, base, identity)
        inputs, beyond = _compare_inputs(inputs, base)
        if not inputs:
            if not work.is_extension_of(base.fingerprint):
                work.remove()
            return _Outcome(base, is_new=False, beyond=beyond)
        if not options.extend:
            raise DataError(
                f"{str(directory)!r} holds a finished corpus that was made of other text: {listed_paths(base.inputs)}, "
                f"but not {listed_paths(item.name for item in inputs)}. Give --extend to add it, or another "
                "--output_dir."
            )
    elif options.extend:
        raise DataError(f"--extend: {str(directory)!r} holds no finished corpus. Leave the flag away to make one.")
    named = {
        "--bert_model's tokeniser": identity.tokenizer_fingerprint,
        **identity.options,
        EXTENDED: None if base is None else base.fingerprint,
        "the list of inputs": [item.name for item in inputs],
    }
    if any(item.path.suffix == ".parquet" for item in inputs if item.path is not None):
        named["what the parts of Parquet files are measured by"] = "all columns"  # once it was the text's alone
    part_bytes = work.begin(named, options.shard_bytes or _shard_bytes(inputs))
    if (directory / MANIFEST_NAME).is_file() and (base is None or open_corpus(directory).manifest != base):
        work.remove()  # another process has finished the corpus since
        return _prepare(options, inputs, identity, ranks)
    sources = group_inputs(inputs, part_bytes)
    hashes = work.hash_inputs(sources, skip_bad_input=options.skip_bad_input, shown=ranks.rank == 0)
    work.forget_lost_shards(directory)
    language = options.language if options.split_sentences else None
    job = Job(
        directory=directory,
        work_directory=work.path,
        sources=sources,
        first_number=0 if base is None else len(base.inputs),
        part_bytes=part_bytes,
        text_field=options.text_field,
        text=TextOptions(identity.tokenizer_json, token_dtype(identity.special_ids.vocab_size).name, language),
        filters=Filters(options.min_chars, options.max_chars, options.min_letters),
        dedup=options.dedup,
        earlier_hashes=earlier_hashes(directory, base),
        skip_bad_input=options.skip_bad_input,
        allow_unknown=options.allow_unknown,
    )
    try:
        run_job(job, ranks, options.num_workers)
    except UserError:
        if base is None and ranks.size == 1:
            work.abandon()
        raise
    return _Outcome(_finish(job, identity, hashes, base), is_new=True)


def _finish(
    job: Job, identity: CorpusIdentity, hashes: Sequence[Sequence[FileRecord | None]], base: Manifest | None
) -> Manifest:
    """Let one process write the manifest."""
    work = WorkDirectory(job.directory)
    while True:
        with work.claims.take("finish", again=True) as claim:
            if claim is not None:
                work.check_exists()
                work.check_inputs(job.sources)
                return finish_corpus(job, identity, hashes, base)
        time.sleep(0.05)  # until the directory has gone, which is a FileNotFoundError


def _find_inputs(options: PrepareArguments) -> list[TextInput]:
    if options.dataset is None:
        return find_inputs(options.train_corpus, judge=not options.skip_bad_input)
    return find_dataset(options.dataset, options.dataset_config, options.dataset_split, options.dataset_revision)


def _shard_bytes(inputs: Sequence[TextInput]) -> int:
    share = -(-sum(item.text_bytes for item in inputs) // _SHARDS)
    if any(item.path is None for item in inputs):
        share = LARGEST_SHARD_BYTES
    return min(max(1 << (share - 1).bit_length(), SMALLEST_SHARD_BYTES), LARGEST_SHARD_BYTES)


def _identity(options: PrepareArguments) -> CorpusIdentity:
    tokenizer = load_tokenizer(options.bert_model, options.lower_case)
    special = special_ids(tokenizer)
    if options.masked_lm_prob > 0 and special.mask is None:
        raise ConfigError(
            f"--masked_lm_prob is {options.masked_lm_prob}, but the tokeniser of {options.bert_model!r} has no mask "
            "token. Leave the flag away or give another model."
        )
    if options.do_whole_word_mask:
        continuations(tokenizer_json(tokenizer), special.vocab_size)
    return CorpusIdentity(
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        tokenizer_json=tokenizer_json(tokenizer),
        special_ids=special,
        options=identity_of(options, {"language": options.language if options.split_sentences else None}),
        sampling=Sampling(
            max_seq_len=options.max_seq_len,
            short_seq_prob=options.short_seq_prob,
            masked_lm_prob=options.masked_lm_prob,
            max_predictions_per_seq=options.max_predictions_per_seq,
            whole_word=options.do_whole_word_mask,
            one_seq=options.one_seq,
        ),
    )


def _check_same_options(directory: Path, manifest: Manifest, identity: CorpusIdentity) -> None:
    """Raise a `DataError` unless a finished corpus has the options and the tokeniser that are asked for."""
    found = {"--bert_model's tokeniser": manifest.tokenizer_fingerprint, **manifest.options}
    wanted = {"--bert_model's tokeniser": identity.tokenizer_fingerprint, **identity.options}
    found.update(asdict(manifest.sampling))
    wanted.update(asdict(identity.sampling))
    if differences := describe_differences(found, wanted):
        raise DataError(
            f"{str(directory)!r} holds a finished corpus that differs: {differences}. Give another --output_dir, or "
            "remove this one."
        )


def _compare_inputs(inputs: Sequence[TextInput], manifest: Manifest) -> tuple[list[TextInput], list[str]]:
    """The inputs that a corpus was not made of, and the names of what it was made of besides them.

    Files are compared by size and hash, which is read only where the size is known.
    """
    names = {item.name for item in inputs if item.path is None}
    records = set(manifest.inputs.values())
    sizes = {record.bytes for record in records}
    found = {item.path: hash_file(item.path) for item in inputs if item.path is not None and item.size in sizes}
    missing = [
        item
        for item in inputs
        if (item.name not in manifest.inputs if item.path is None else found.get(item.path) not in records)
    ]
    asked = set(found.values())
    beyond = [name for name, record in manifest.inputs.items() if name not in names and record not in asked]
    return missing, beyond


def _say_what_is_ignored(options: PrepareArguments) -> None:
    if options.reduce_memory:
        print("note: --reduce_memory has no effect: shards are always memory-mapped.")
    if options.epochs_to_generate is not None:
        print("note: --epochs_to_generate has no effect: samples are made while training, anew in each epoch.")


def _say_what_is_there(directory: Path, outcome: _Outcome) -> None:
    what = "these inputs" if outcome.beyond else "this corpus"
    print(f"{directory} already holds {what}, finished; nothing to do.")
    if outcome.beyond:
        print(
            f"note: the corpus was made of more than was asked for: {listed_paths(outcome.beyond)}. For one without it "
            "give another --output_dir."
        )
    if WorkDirectory(directory).is_extension_of(outcome.manifest.fingerprint):
        print("note: an extension of it was begun and is left alone; the command that began it finishes it.")


def _print_counts(manifest: Manifest, seconds: float | None) -> None:
    disk_bytes = sum(record.bytes for record in manifest.files.values())
    speed = "" if seconds is None else f", {manifest.text_bytes / 1e6 / max(seconds, 1e-9):.2f} MB/s"
    print(
        f"{manifest.documents:,} documents, {manifest.sentences:,} sentences, {manifest.tokens:,} tokens in "
        f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}; "
        f"{manifest.text_bytes:,} bytes of text{speed}; {disk_bytes / manifest.tokens:.2f} bytes on disk a token"
    )
    if words := unknown_words(manifest):
        print(words)
    if left_out := describe_report(manifest.report):
        seen = f"of {manifest.report['documents']:,} documents" if "documents" in manifest.report else "of the inputs"
        print(f"left out {seen}{left_out}")


if __name__ == "__main__":
    run_command(main)
