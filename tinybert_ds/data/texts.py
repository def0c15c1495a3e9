"""Texts without labels as token rows on disk: tokenised once, mapped by every process that reads them."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import xxhash
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.indexed import hash_file, token_dtype
from tinybert_ds.data.table_formats import estimate_rows, file_format, is_pattern
from tinybert_ds.data.task_batches import EncodedExamples, row_encoder
from tinybert_ds.data.task_files import Examples, content_files, read_labelled_blocks
from tinybert_ds.data.task_spec import Column, SplitFile, TaskSpec, TextFormat
from tinybert_ds.data.task_tokens import read_rows, write_rows
from tinybert_ds.data.teacher_columns import read_arrays
from tinybert_ds.data.tokenizer import special_ids, tokenizer_fingerprint
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted, without_compression
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.derived import obtain

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever the same files, columns, tokeniser and length give other rows than before."""

PLAIN = (".txt", ".text")
"""Suffixes of files that are nothing but texts, one a line; a blank line is none."""

VECTORS = "vectors"
"""What the teacher's vectors are called among the columns of rows."""

_SPLIT = "train"


def find_texts(words: Sequence[str], flag: str = "--texts") -> list[Path]:
    """Return the files that words of a command line name, those of a pattern in the order of their names.

    Raises:
        DataError: There is none, or one is named twice.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word)
        matches = [path] if path.exists() else []
        if not matches and is_pattern(word):
            matches = [Path(match) for match in sorted(glob.glob(word, recursive=True))]
        if not matches:
            raise DataError(f"{flag} {word} does not exist; give files of texts, or a pattern such as 'texts/*.jsonl'")
        found += matches
    twice = sorted({str(path) for path in found if found.count(path) > 1})
    if twice:
        raise DataError(f"{flag}: {', '.join(twice)} would be read twice; name each file once")
    return found


def read_texts(
    paths: Iterable[Path], columns: Sequence[str], *, prompt: str = "", vector_column: str | None = None
) -> Iterator[Examples]:
    """Yield the texts of files, some thousand at a time: of each block of rows one column after the other.

    Args:
        columns: Names, or positions from 0; a plain file has none.
        prompt: What stands before each text.
        vector_column: Holds a vector for each text of the only column; it becomes `VECTORS` of the examples.

    Raises:
        OSError, DataError: See `read_labelled_blocks`; a row without a vector, or with one of another width.
    """
    width = 0
    for path in paths:
        for table, _ in read_labelled_blocks(_spec(path, columns, vector_column), path.parent, _SPLIT):
            more = {}
            if vector_column is not None:
                more[VECTORS] = read_arrays(table, VECTORS, vector_column)
                found = more[VECTORS].shape[1]
                if width and table.rows and found != width:
                    raise DataError(
                        f"{path}, {table.unit} {table.rows[0][0]}, column {quoted(vector_column)}: {found} values; the "
                        f"rows before have {width}. Give vectors of one model"
                    )
                width = found or width
            for place in table.text_columns:
                yield Examples(path, ([prompt + fields[place] for _, fields in table.rows],), None, columns=more)


def load_texts(
    paths: Sequence[Path],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    *,
    home: Path,
    prompt: str = "",
    vector_column: str | None = None,
    first: bool = True,
) -> EncodedExamples:
    """Return the rows of texts, memory-mapped, after tokenising them if nobody has.

    Args:
        columns, prompt, vector_column: See `read_texts`.
        max_seq_length: What rows are cut to.
        home: Folder of derived data.
        first: Whether this process is the one of its host that does the work and reports, if there is work.

    Raises:
        ConfigError, DataError: See `read_texts`, `row_encoder` and `obtain`.
    """
    key = {
        "version": FORMAT_VERSION,
        "texts": [hash_file(file)._asdict() for file in content_files(list(paths))],
        "formats": [file_format(path) for path in paths],
        "columns": list(columns),
        "prompt": prompt,
        "vectors": vector_column,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "max_seq_length": max_seq_length,
    }
    directory = home / f"tokens-{paths[0].stem}-{xxhash.xxh3_64_hexdigest(repr(sorted(key.items())).encode())}"

    def build(target: Path) -> None:
        logger.info("tokenising %s%s, kept in %s", paths[0], " and others" if len(paths) > 1 else "", directory)
        encoder = row_encoder(tokenizer, max_seq_length, pair=False)
        blocks = read_texts(paths, columns, prompt=prompt, vector_column=vector_column)
        total = estimate_rows(paths)
        with progress_bar(
            total=None if total is None else total * len(columns), desc="tokenising", unit="text", unit_scale=True
        ) as bar:
            dtype = token_dtype(special_ids(tokenizer).vocab_size)
            write_rows(target, _refuse_none(blocks, paths), encoder, dtype, key, bar.update)

    return obtain(directory, partial(read_rows, key=key), build, first=first)


def _refuse_none(blocks: Iterator[Examples], paths: Sequence[Path]) -> Iterator[Examples]:
    first = next(blocks, None)
    if first is None:
        raise DataError(f"{paths[0]} holds no texts; give files with at least one")
    return chain([first], blocks)


def _spec(path: Path, columns: Sequence[str], vector_column: str | None) -> TaskSpec:
    """Describe a file as the only split of a task without labels."""
    more: dict[str, tuple[Column, ...]] = {} if vector_column is None else {VECTORS: (vector_column,)}
    if without_compression(path).suffix.lower() in PLAIN:
        # A line has no separator in it but its end.
        layout = SplitFile(
            str(path), (0,), None, header=False, label_required=False, text_format=TextFormat("\n", quotes=False)
        )
    else:
        layout = SplitFile(str(path), tuple(columns), None, label_required=False)
    layout = replace(layout, more_columns=more)
    return TaskSpec(name="texts", splits={_SPLIT: layout}, metrics=(), official=(), eval_splits=())
