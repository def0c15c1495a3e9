"""Units of text to token ids; what a worker process does.

Imports little, because every worker process imports it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import sentencex
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_tools.text_input import TextUnit
from tinybert_ds.errors import DataError

_UNITS_AHEAD_PER_WORKER = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextOptions(NamedTuple):
    """What decides about the ids that come of a text."""

    tokenizer_json: str
    dtype: str  # of the ids
    split_language: str | None  # None: a line is a sentence; else the language whose rules split lines


class TokenisedUnit(NamedTuple):
    """Sentences of a unit and where documents end in it."""

    tokens: NDArray[np.integer]  # (Σ lengths,)
    lengths: NDArray[np.int32]  # (k,) all positive
    document_ends: NDArray[np.int64]  # (e,) number of sentences before each blank line, and at the end of an input
    end_offsets: NDArray[np.int64]  # (e,) offset in the text of the input after each of these
    text_bytes: int


class TextTokeniser:
    """Turns units into ids."""

    def __init__(self, options: TextOptions) -> None:
        self._tokenizer = Tokenizer.from_str(options.tokenizer_json)
        self._dtype = np.dtype(options.dtype)
        self._language = options.split_language

    def tokenise(self, unit: TextUnit) -> TokenisedUnit:
        """Ids of all sentences of a unit; a sentence of no tokens is left out.

        Raises:
            DataError: the text is not UTF-8.
        """
        sentences, document_ends, end_offsets = self._sentences(unit)
        encodings = self._tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
        lengths = np.fromiter((len(encoding) for encoding in encodings), dtype=np.int32, count=len(encodings))
        ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
        kept = np.concatenate([[0], np.cumsum(lengths > 0)])
        return TokenisedUnit(
            tokens=np.fromiter(ids, dtype=self._dtype, count=int(lengths.sum())),
            lengths=lengths[lengths > 0],
            document_ends=kept[document_ends].astype(np.int64),
            end_offsets=np.array(end_offsets, dtype=np.int64),
            text_bytes=len(unit.data),
        )

    def _sentences(self, unit: TextUnit) -> tuple[list[str], list[int], list[int]]:
        _check_utf8(unit)
        lines = unit.data.split(b"\n")
        if not lines[-1]:
            lines.pop()  # what follows the last \n is no line
        offset = unit.begin
        if offset == 0 and lines[0].startswith(_BYTE_ORDER_MARK):
            lines[0] = lines[0][len(_BYTE_ORDER_MARK) :]
            offset += len(_BYTE_ORDER_MARK)
        sentences: list[str] = []
        document_ends: list[int] = []
        end_offsets: list[int] = []
        for data in lines:
            offset += len(data) + 1
            line = data.decode("utf-8").strip()
            if not line:
                document_ends.append(len(sentences))
                end_offsets.append(offset)
            elif self._language is None:
                sentences.append(line)
            else:
                parts = (sentence.strip() for sentence in sentencex.segment(self._language, line))
                sentences.extend(sentence for sentence in parts if sentence)
        if unit.ends_input:
            document_ends.append(len(sentences))
            end_offsets.append(unit.begin + len(unit.data))
        return sentences, document_ends, end_offsets


def tokenise_units(units: Iterable[TextUnit], options: TextOptions, num_workers: int) -> Iterator[TokenisedUnit]:
    """Tokenise units in `num_workers` processes (1: in this one); results come in the order of the units.

    At most a few units per worker are in memory.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is a core; workers inherit it
    if num_workers == 1:
        tokeniser = TextTokeniser(options)
        yield from (tokeniser.tokenise(unit) for unit in units)
        return
    # Spawned, not forked: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(options,)) as pool:
        pending: deque[Future[TokenisedUnit]] = deque()
        try:
            for unit in units:
                pending.append(pool.submit(_tokenise_in_worker, unit))
                if len(pending) > _UNITS_AHEAD_PER_WORKER * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_utf8(unit: TextUnit) -> None:
    try:
        unit.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = unit.first_line + unit.data.count(b"\n", 0, error.start)
        bad = unit.data[error.start : error.start + 1]
        raise DataError(
            f"{unit.path!r} is not UTF-8: byte 0x{bad.hex()} at offset {unit.begin + error.start} of the text, line "
            f"{line}. Convert the file, for instance with: iconv -f LATIN1 -t UTF-8"
        ) from error


# A worker process has no other place for what it keeps between two units; empty in the process that starts workers.
_worker_tokeniser: list[TextTokeniser] = []


def _start_worker(options: TextOptions) -> None:
    _worker_tokeniser.append(TextTokeniser(options))


def _tokenise_in_worker(unit: TextUnit) -> TokenisedUnit:
    return _worker_tokeniser[0].tokenise(unit)
