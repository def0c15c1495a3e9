"""Turns text into the shards that general distillation reads."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from data_tools.corpus_writer import CorpusIdentity, CorpusWriter, check_output_directory
from data_tools.text_input import InputReader, TextInput, TextUnit, find_inputs, hash_inputs
from data_tools.tokenise_text import TextOptions, tokenise_units
from tinybert_ds.command_line import run_command
from tinybert_ds.data.indexed import FileRecord, token_dtype
from tinybert_ds.data.manifest import MANIFEST_NAME, Manifest, Sampling, open_corpus
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids, tokenizer_fingerprint, tokenizer_json
from tinybert_ds.errors import ConfigError, DataError, raise_all

DEFAULT_SHARD_TOKENS = 2**27


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; help texts are the documentation of the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--train_corpus",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text: plain, .gz or .xz; a sentence a line, a blank line between documents",
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
    add("--language", default="en", help="language of --split_sentences, a two-letter code (default: en)")
    add("--num_workers", type=int, default=1, help="processes; the shards do not depend on it (default: 1)")
    add(
        "--shard_tokens",
        type=int,
        default=DEFAULT_SHARD_TOKENS,
        help="a shard ends with the first document that reaches so many tokens (default: 2**27)",
    )
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the corpus that the command line describes; say what is there."""
    options = parse_arguments(arguments)
    _check_numbers(options)
    _say_what_is_ignored(options)
    inputs = find_inputs(options.train_corpus)
    identity = _identity(options)
    if (options.output_dir / MANIFEST_NAME).is_file():
        manifest = _check_finished(options.output_dir, identity, inputs)
        print(f"{options.output_dir} already holds this corpus, finished; nothing to do.")
        _print_counts(manifest, seconds=None)
        return
    check_output_directory(options.output_dir)
    begin = time.monotonic()
    manifest = write_corpus(options, identity, inputs)
    _print_counts(manifest, time.monotonic() - begin)


def write_corpus(options: argparse.Namespace, identity: CorpusIdentity, inputs: Sequence[TextInput]) -> Manifest:
    """Tokenise all inputs into shards; the same bytes for any number of workers."""
    dtype = token_dtype(identity.special_ids.vocab_size).name
    text_options = TextOptions(identity.tokenizer_json, dtype, options.language if options.split_sentences else None)
    places: deque[tuple[str, int]] = deque()
    records: dict[str, FileRecord] = {}
    with CorpusWriter(options.output_dir, dtype, options.shard_tokens) as writer, _progress_bar(inputs) as bar:
        units = _units(inputs, places, records, bar)
        for unit in tokenise_units(units, text_options, options.num_workers):
            name, offset = places.popleft()
            writer.add(name, offset, unit)
            bar.update(unit.text_bytes)
        return writer.finish(identity, records)


def _units(
    inputs: Sequence[TextInput], places: deque[tuple[str, int]], records: dict[str, FileRecord], bar: tqdm
) -> Iterator[TextUnit]:
    """All units of all inputs; notes the place of each, the record of each input, and how much text is to come."""
    all_bytes = sum(item.path.stat().st_size for item in inputs)
    file_bytes, text_bytes = 0, 0
    for item in inputs:
        reader = InputReader(item.path)
        for unit in reader.units():
            places.append((item.name, unit.begin))
            text_bytes += len(unit.data)
            # Compressed files do not say how much text is in them; what was read so far tells the ratio.
            bar.total = max(text_bytes, text_bytes * all_bytes // max(1, file_bytes + reader.file_position))
            yield unit
        records[item.name] = reader.record
        file_bytes += reader.file_position


def _progress_bar(inputs: Sequence[TextInput]) -> tqdm:
    interval = 0.5 if sys.stderr.isatty() else 10.0
    total = sum(item.path.stat().st_size for item in inputs)
    return tqdm(total=total, desc="tokenising", unit="B", unit_scale=True, mininterval=interval, file=sys.stderr)


def _identity(options: argparse.Namespace) -> CorpusIdentity:
    tokenizer = load_tokenizer(options.bert_model, options.lower_case)
    special = special_ids(tokenizer)
    if options.masked_lm_prob > 0 and special.mask is None:
        raise ConfigError(
            f"--masked_lm_prob is {options.masked_lm_prob}, but the tokeniser of {options.bert_model!r} has no mask "
            "token. Leave the flag away or give another model."
        )
    return CorpusIdentity(
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        tokenizer_json=tokenizer_json(tokenizer),
        special_ids=special,
        options={
            "split_sentences": options.split_sentences,
            "language": options.language if options.split_sentences else None,
            "shard_tokens": options.shard_tokens,
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


def _check_finished(directory: Path, identity: CorpusIdentity, inputs: Sequence[TextInput]) -> Manifest:
    """The manifest of a finished corpus, if it is the one that is asked for.

    Raises:
        DataError: other inputs, options or tokeniser; a damaged corpus.
    """
    manifest = open_corpus(directory).manifest
    wanted = {"--bert_model's tokeniser": identity.tokenizer_fingerprint, **identity.options}
    found = {"--bert_model's tokeniser": manifest.tokenizer_fingerprint, **manifest.options}
    wanted.update(asdict(identity.sampling))
    found.update(asdict(manifest.sampling))
    differences = [
        f"{name} is {found.get(name)!r} there and {value!r} now"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if not differences and manifest.inputs != hash_inputs(inputs):
        differences = [f"it was made of other text: {', '.join(manifest.inputs)}"]
    if differences:
        raise DataError(
            f"{str(directory)!r} holds a finished corpus that differs: {'; '.join(differences)}. Give another "
            "--output_dir, or remove this one."
        )
    return manifest


def _check_numbers(options: argparse.Namespace) -> None:
    problems = []
    for name, lowest in (("num_workers", 1), ("shard_tokens", 1), ("max_seq_len", 5), ("max_predictions_per_seq", 0)):
        if getattr(options, name) < lowest:
            problems.append(f"--{name} is {getattr(options, name)}; it must be at least {lowest}")
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


def _print_counts(manifest: Manifest, seconds: float | None) -> None:
    disk_bytes = sum(record.bytes for record in manifest.files.values())
    speed = "" if seconds is None else f", {manifest.text_bytes / 1e6 / max(seconds, 1e-9):.2f} MB/s"
    print(
        f"{manifest.documents:,} documents, {manifest.sentences:,} sentences, {manifest.tokens:,} tokens in "
        f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}; "
        f"{manifest.text_bytes:,} bytes of text{speed}; {disk_bytes / manifest.tokens:.2f} bytes on disk a token"
    )


if __name__ == "__main__":
    run_command(main)
