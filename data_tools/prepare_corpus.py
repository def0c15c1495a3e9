"""Turns text into the shards that general distillation reads.

Killed and started again with the same command, it redoes only what is unfinished. Started by `mpirun`, `srun` or by
hand on several hosts that share the output directory, it shares the work between all processes; the shards do not
depend on how many there are.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from data_tools.cleaning import Filters
from data_tools.corpus_directory import (
    EXTENDED,
    CorpusIdentity,
    WorkDirectory,
    check_output_directory,
    describe_differences,
    describe_report,
    earlier_hashes,
    finish_corpus,
    unknown_words,
)
from data_tools.corpus_job import Job
from data_tools.corpus_processes import run_job
from data_tools.input_files import TextInput, find_dataset, find_inputs
from data_tools.input_groups import group_inputs
from data_tools.ranks import Ranks, find_ranks
from data_tools.tokenise_text import TextOptions
from tinybert_ds.command_line import run_command
from tinybert_ds.data.indexed import FileRecord, hash_file, token_dtype
from tinybert_ds.data.manifest import MANIFEST_NAME, Manifest, Sampling, continuations, open_corpus
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids, tokenizer_fingerprint, tokenizer_json
from tinybert_ds.errors import ConfigError, DataError, UserError, raise_all

SMALLEST_SHARD_BYTES, LARGEST_SHARD_BYTES = 1 << 22, 1 << 28
_SHARDS = 64
_ATTEMPTS = 5


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; help texts are the documentation of the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--train_corpus",
        nargs="+",
        metavar="FILE",
        help="files, directories or patterns: text (a sentence a line, a blank line between documents), JSON lines "
        "(.jsonl; a document a line), both plain or .gz, .xz, .zst; .parquet (a document a row)",
    )
    add("--bert_model", required=True, metavar="DIR", help="model directory whose tokeniser is used")
    add("--output_dir", required=True, type=Path, metavar="DIR", help="new, empty, or holding this very corpus")
    casing = parser.add_mutually_exclusive_group()
    casing.add_argument(
        "--do_lower_case",
        dest="lower_case",
        action="store_true",
        default=None,
        help="lower-case the text, whatever the directory says",
    )
    casing.add_argument(
        "--no_lower_case", dest="lower_case", action="store_false", help="keep the case, whatever the directory says"
    )
    add("--split_sentences", action="store_true", help="lines are paragraphs: split them into sentences")
    add("--language", default="en", help="language of --split_sentences, a code such as de or zh (default: en)")
    add("--num_workers", type=int, default=1, help="processes; the shards do not depend on it (default: 1)")
    add(
        "--shard_bytes",
        type=int,
        help="bytes of text of a shard, which ends with a document (default: a 64th of the inputs, rounded up to a "
        "power of two between 4 MiB and 256 MiB)",
    )
    add("--extend", action="store_true", help="add the inputs that the finished corpus in --output_dir has not yet")
    add("--text_field", default="text", help="name of the text in JSON lines, Parquet and datasets (default: text)")
    add("--skip_bad_input", action="store_true", help="leave out what cannot be read, and count and list it")
    add("--allow_unknown", action="store_true", help="go on although the tokeniser does not know most of the text")
    dataset = parser.add_argument_group("datasets", "Instead of --train_corpus; each record is a document.")
    dataset.add_argument("--dataset", metavar="NAME", help="what datasets.load_dataset opens, streamed: local or hub")
    dataset.add_argument("--dataset_config", metavar="NAME", help="its configuration")
    dataset.add_argument("--dataset_split", default="train", metavar="NAME", help="its split (default: train)")
    dataset.add_argument("--dataset_revision", metavar="REVISION", help="its revision on the hub; state it to repeat")
    cleaning = parser.add_argument_group("cleaning", "What is left out, always whole documents.")
    cleaning.add_argument("--dedup", action="store_true", help="documents whose lines were all there before, in order")
    cleaning.add_argument("--min_chars", type=int, default=0, help="documents of fewer characters (default: 0)")
    cleaning.add_argument("--max_chars", type=int, help="documents of more characters")
    cleaning.add_argument(
        "--min_letters",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="documents with fewer letters, of any script, among what is not white space (default: 0)",
    )
    _add_samples(parser)
    return parser.parse_args(arguments)


def _add_samples(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group(
        "samples", "Defaults of training, kept in the manifest; they do not change the shards."
    )
    sampling.add_argument("--max_seq_len", type=int, default=128, help="tokens of a sample (default: 128)")
    sampling.add_argument(
        "--short_seq_prob", type=float, default=0.1, help="share of documents cut into shorter samples (default: 0.1)"
    )
    sampling.add_argument(
        "--masked_lm_prob", type=float, default=0.0, help="share of tokens to mask; 0 masks none (default: 0)"
    )
    sampling.add_argument(
        "--max_predictions_per_seq", type=int, default=20, help="most masked tokens of a sample (default: 20)"
    )
    sampling.add_argument("--do_whole_word_mask", action="store_true", help="mask whole words")
    sampling.add_argument("--one_seq", action="store_true", help="no random second sentences")
    ignored = parser.add_argument_group("without effect", "Accepted, because existing commands have them.")
    ignored.add_argument("--reduce_memory", action="store_true", help="shards are always memory-mapped")
    ignored.add_argument(
        "--epochs_to_generate", type=int, default=None, help="samples are made while training, for any number of epochs"
    )
    ignored.add_argument("--local_rank", type=int, default=-1, help="set by the `deepspeed` launcher")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the corpus that the command line describes; say what is there."""
    options = parse_arguments(arguments)
    ranks = find_ranks()
    _check_numbers(options)
    if ranks.rank == 0:
        _say_what_is_ignored(options)
    inputs = _find_inputs(options)
    identity = _identity(options)
    begin = time.monotonic()
    for attempt in range(_ATTEMPTS):
        check_output_directory(options.output_dir)
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
                f"cannot write to {str(options.output_dir)!r}: {error}. Make room or mend the directory, and run the "
                "same command again."
            ) from error
        if ranks.rank == 0:
            if not outcome.is_new and attempt == 0:
                _say_what_is_there(options.output_dir, outcome)
            _print_counts(outcome.manifest, time.monotonic() - begin if outcome.is_new else None)
        return
    raise DataError(
        f"{str(options.output_dir)!r} does not keep what is written there. Does something remove its files?"
    )


class _Outcome(NamedTuple):
    manifest: Manifest
    is_new: bool  # whether anything was written
    beyond: Sequence[str] = ()  # inputs that a corpus that was there has besides those asked for


def _prepare(
    options: argparse.Namespace, inputs: Sequence[TextInput], identity: CorpusIdentity, ranks: Ranks
) -> _Outcome:
    """Make the corpus, or find that it is there."""
    directory: Path = options.output_dir
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
                f"{str(directory)!r} holds a finished corpus that was made of other text: {_names(base.inputs)}, but "
                f"not {_names([item.name for item in inputs])}. Give --extend to add it, or another --output_dir."
            )
    elif options.extend:
        raise DataError(f"--extend: {str(directory)!r} holds no finished corpus. Leave the flag away to make one.")
    named = {
        "--bert_model's tokeniser": identity.tokenizer_fingerprint,
        **identity.options,
        EXTENDED: None if base is None else base.fingerprint,
        "the list of inputs": [item.name for item in inputs],
    }
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


def _find_inputs(options: argparse.Namespace) -> list[TextInput]:
    if (options.train_corpus is None) == (options.dataset is None):
        raise ConfigError("give one of --train_corpus and --dataset")
    if options.train_corpus is not None:
        return find_inputs(options.train_corpus)
    name = (options.dataset, options.dataset_config, options.dataset_split, options.dataset_revision)
    return find_dataset(*name)


def _shard_bytes(inputs: Sequence[TextInput]) -> int:
    share = -(-sum(item.text_bytes for item in inputs) // _SHARDS)
    if any(item.path is None for item in inputs):
        share = LARGEST_SHARD_BYTES
    return min(max(1 << (share - 1).bit_length(), SMALLEST_SHARD_BYTES), LARGEST_SHARD_BYTES)


def _identity(options: argparse.Namespace) -> CorpusIdentity:
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
        options={
            "split_sentences": options.split_sentences,
            "language": options.language if options.split_sentences else None,
            "shard_bytes": options.shard_bytes,
            "text_field": options.text_field,
            "skip_bad_input": options.skip_bad_input,
            "dedup": options.dedup,
            "min_chars": options.min_chars,
            "max_chars": options.max_chars,
            "min_letters": options.min_letters,
        },
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


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + " ..." * (len(listed) > 5)


def _check_numbers(options: argparse.Namespace) -> None:
    problems = []
    lowest_values = {"num_workers": 1, "shard_bytes": 16, "max_seq_len": 5, "max_predictions_per_seq": 0}
    for name, lowest in {**lowest_values, "min_chars": 0, "max_chars": 1}.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            problems.append(f"--{name} is {value}; it must be at least {lowest}")
    if not re.fullmatch(r"[a-z]{2,3}(-\w+)*", options.language):
        problems.append(f"--language is {options.language!r}; it must be a code such as en, de or zh")
    if not 0 <= options.min_letters <= 1:
        problems.append(f"--min_letters is {options.min_letters}; it must be from 0 to 1")
    if options.max_chars is not None and options.max_chars < options.min_chars:
        problems.append(f"--max_chars {options.max_chars} is below --min_chars {options.min_chars}")
    if not 0 <= options.short_seq_prob <= 1:
        problems.append(f"--short_seq_prob is {options.short_seq_prob}; it must be from 0 to 1")
    if not 0 <= options.masked_lm_prob < 1:
        problems.append(f"--masked_lm_prob is {options.masked_lm_prob}; it must be at least 0 and below 1")
    raise_all(problems, ConfigError)


def _say_what_is_ignored(options: argparse.Namespace) -> None:
    if options.reduce_memory:
        print("note: --reduce_memory has no effect: shards are always memory-mapped.")
    if options.epochs_to_generate is not None:
        print("note: --epochs_to_generate has no effect: samples are made while training, anew in each epoch.")


def _say_what_is_there(directory: Path, outcome: _Outcome) -> None:
    what = "these inputs" if outcome.beyond else "this corpus"
    print(f"{directory} already holds {what}, finished; nothing to do.")
    if outcome.beyond:
        print(
            f"note: the corpus was made of more than was asked for: {_names(outcome.beyond)}. For one without it give "
            "another --output_dir."
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
