"""A task's rows as token ids on disk: tokenised once, mapped by every process that reads them.

A directory for each (file, task, tokeniser, length): `rows.bin/.idx`, a sequence for each row, special tokens
included; `segments.npy`, `labels.npy` and, where tokens are answered, `units.npy`; for what else is known of each row
a file of its own, as it is in memory; `record.json` with what was written. N rows, T tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.indexed import ShardWriter, hash_file, open_shard, token_dtype
from tinybert_ds.data.row_columns import ColumnShape, ColumnWriter, map_column
from tinybert_ds.data.span_rows import span_encoder
from tinybert_ds.data.table_formats import estimate_rows, file_format
from tinybert_ds.data.task_batches import EncodedBlock, EncodedExamples, row_encoder
from tinybert_ds.data.task_files import Examples, content_files, read_split_in_blocks, require_files
from tinybert_ds.data.task_spec import TaskSpec, TextFormat
from tinybert_ds.data.teacher_columns import COLUMNS
from tinybert_ds.data.token_rows import token_encoder
from tinybert_ds.data.tokenizer import tokenizer_fingerprint, vocabulary_size
from tinybert_ds.data.vocabulary import count_unknown, describe_unknown, judge_unknown, unknown_id
from tinybert_ds.errors import DataError
from tinybert_ds.files import write_atomically
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.derived import map_array, obtain, save_array
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets import target_of

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever the same file, task, tokeniser and length give other bytes than before."""

_LATER = {"skip_labels", "text_form", "target", "label_separator", "more_columns"}
_ROWS, _SEGMENTS, _LABELS, _UNITS, _RECORD = "rows", "segments.npy", "labels.npy", "units.npy", "record.json"


def load_rows(
    spec: TaskSpec,
    data_dir: str | Path,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    *,
    home: Path,
    first: bool = True,
) -> EncodedExamples:
    """Return the tokenised rows of a split, memory-mapped, after tokenising them if nobody has.

    Args:
        max_seq_length: What rows are cut to.
        first: Whether this process is the one of its host that does the work and reports, if there is work.

    Raises:
        ConfigError, DataError: see `read_split`, `encode` and `obtain`.
    """
    paths = require_files(spec, data_dir, split)
    path = paths[0]
    hashes = [hash_file(file)._asdict() for file in content_files(paths)]
    key = {
        "version": FORMAT_VERSION,
        "file": hashes[0] if len(hashes) == 1 else hashes,
        "format": file_format(path),
        "task": _what_decides(spec, split),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_seq_length": max_seq_length,
    }
    directory = home / f"tokens-{path.stem}-{_digest(key)}"

    def build(target: Path) -> None:
        logger.info("tokenising %s, kept in %s", path, directory)
        encoder = encoder_of(spec, tokenizer, max_seq_length)
        with progress_bar(
            total=estimate_rows(paths), desc=f"tokenising {path.name}", unit="row", unit_scale=True
        ) as bar:
            blocks = read_split_in_blocks(spec, data_dir, split)
            write_rows(target, blocks, encoder, token_dtype(vocabulary_size(tokenizer)), key, bar.update)

    return obtain(directory, partial(read_rows, key=key), build, first=first)


def encoder_of(
    spec: TaskSpec, tokenizer: PreTrainedTokenizerFast, max_seq_length: int
) -> Callable[[Examples], EncodedBlock]:
    """Return what tokenises the rows of a task."""
    unit = target_of(spec).unit
    if unit != "row":
        return (token_encoder if unit == "word" else span_encoder)(tokenizer, max_seq_length)
    return row_encoder(tokenizer, max_seq_length, pair=spec.is_pair)


def judge_rows(
    rows: EncodedExamples, tokenizer: PreTrainedTokenizerFast, path: Path, *, allow_unknown: bool
) -> str | None:
    """Count the words of a split that the tokeniser does not know; see `judge_unknown`.

    Args:
        allow_unknown: Whether mostly unknown text is wanted.
    """
    unknown_token = unknown_id(tokenizer.backend_tokenizer)
    if unknown_token is None:
        return None
    unknown = count_unknown(rows.tokens, unknown_token)
    special = set(tokenizer.all_special_ids) - {unknown_token}
    words = int(np.isin(rows.tokens, list(special), invert=True).sum())
    logger.info("%s: %s", path, describe_unknown(unknown, words))
    return judge_unknown(unknown, words, text=str(path), allowed=allow_unknown)


def _what_decides(spec: TaskSpec, split: str) -> dict[str, Any]:
    """Everything of a task that can change how a file is read."""
    content = {**asdict(spec), "splits": asdict(spec.splits[split])}
    for name in ("name", "directory", "metrics", "official", "eval_splits", "max_seq_length", "augmented_copies"):
        content.pop(name)
    for name in ("file", "more_files"):  # of files their content counts
        content["splits"].pop(name)
    layout = spec.splits[split]
    unquoted = file_format(layout.file) == "tsv" and layout.text_format == TextFormat(quotes=False)
    if unquoted or layout.text_format == TextFormat():  # rows that were kept before it could be stated stay valid
        content["splits"].pop("text_format")
    content["splits"].pop("may_lack_label")  # a file that has labels is read alike
    if COLUMNS not in layout.more_columns:
        content.pop("teacher")
    for part in (content, content["splits"]):  # what came later is kept out where it says nothing
        for name in _LATER & part.keys():
            if not part[name]:
                part.pop(name)
    return dict(json.loads(json.dumps(content)))


def _digest(key: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(key, sort_keys=True).encode())


def write_rows(
    directory: Path,
    blocks: Iterable[Examples],
    encoder: Callable[[Examples], EncodedBlock],
    dtype: np.dtype,
    key: dict[str, Any],
    progress: Callable[[int], Any],
) -> None:
    """Tokenise and write block after block: the memory that it takes does not grow with the file's texts."""
    writer = ShardWriter(directory, _ROWS, dtype)
    segments, labels, units, skipped_rows = [], [], [], 0
    columns = ColumnWriter(directory)
    for examples in blocks:
        block = encoder(examples)
        writer.add_sentences(block.tokens, block.lengths, np.zeros(0, dtype=np.int64))
        segments.append(block.segment_a_lengths)
        own = block.labels if block.units is not None else examples.labels
        if own is not None:
            labels.append(own)
        if block.units is not None:
            units.append(block.units)
        columns.add(examples.columns if block.columns is None else block.columns)
        skipped_rows += examples.skipped_rows
        progress(len(examples))
    writer.finish()
    save_array(directory / _SEGMENTS, np.concatenate(segments))
    if labels:
        save_array(directory / _LABELS, np.concatenate(labels))
    if units:
        save_array(directory / _UNITS, np.concatenate(units))
    shapes = columns.finish()
    written = _map(directory, skipped_rows, shapes)
    record = {"key": key, "skipped_rows": skipped_rows, "fingerprint": written.fingerprint}
    if shapes:
        record["columns"] = shapes
    write_atomically(directory / _RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")


def read_rows(directory: Path, *, key: dict[str, Any]) -> EncodedExamples | None:
    """Map a directory and compare its content with the record's hash; None where it is missing or damaged."""
    try:
        record = parse_json((directory / _RECORD).read_bytes())
        rows = _map(directory, record["skipped_rows"], record.get("columns", {}))
        return rows if (record["key"], record["fingerprint"]) == (key, rows.fingerprint) else None
    except (DataError, OSError, ValueError, KeyError, TypeError):  # not there, or not as it was written
        return None


def _map(directory: Path, skipped_rows: int, columns: Mapping[str, ColumnShape]) -> EncodedExamples:
    shard = open_shard(directory, _ROWS)
    ends = np.append(shard.offsets // shard.tokens.itemsize, len(shard.tokens))
    labels, units = directory / _LABELS, directory / _UNITS
    return EncodedExamples(
        shard.tokens,
        ends,
        map_array(directory / _SEGMENTS),
        map_array(labels) if labels.is_file() else None,
        skipped_rows,
        {name: map_column(directory, name, shape) for name, shape in columns.items()},
        map_array(units) if units.is_file() else None,
    )
