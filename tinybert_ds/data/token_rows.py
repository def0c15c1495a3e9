"""Sentences of words as rows of token ids: the first piece of each word is answered.

A sentence that is longer than a row is cut into windows that overlap; each word is answered once, in the window where
more of the sentence is around it. The windows of a sentence are rows that follow each other, and so are their answers.
n sentences of a block, T tokens of its rows, P words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.batching import IGNORED
from tinybert_ds.data.task_batches import EncodedBlock
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.task_spec import GROUPS
from tinybert_ds.data.teacher_columns import COLUMNS
from tinybert_ds.errors import ConfigError, ModelError

OVERLAP = 0.25
"""Of a row, by which two windows of a sentence overlap at most."""


class Window(NamedTuple):
    """Words of a sentence that a row holds, and those of them that are answered in it."""

    begin: int
    end: int
    first: int
    last: int  # behind the last one


def windows(pieces: Sequence[int], room: int) -> list[Window]:
    """Cut a sentence into windows.

    Args:
        pieces: Of each word, one or more; those of a word that has more than there is room for are cut.
        room: Pieces in a window.
    """
    starts = np.concatenate([[0], np.cumsum(np.minimum(pieces, room))])
    spans = []
    begin, count = 0, len(pieces)
    while True:
        end = int(np.searchsorted(starts, starts[begin] + room, side="right")) - 1
        spans.append((begin, end))
        if end == count:
            break
        earliest = int(np.searchsorted(starts, starts[end] - int(OVERLAP * room), side="left"))
        from_where_the_next_word_fits = int(np.searchsorted(starts, starts[end + 1] - room, side="left"))
        begin = max(begin + 1, earliest, from_where_the_next_word_fits)
    cuts = [0, *((right[0] + left[1] + 1) // 2 for left, right in pairwise(spans)), count]
    return [Window(*span, *cut) for span, cut in zip(spans, pairwise(cuts), strict=True)]


def token_encoder(tokenizer: PreTrainedTokenizerFast, max_seq_length: int) -> Callable[[Examples], EncodedBlock]:
    """Return what tokenises sentences; `Examples.texts` holds the words of all of them, `GROUPS` which is whose.

    Raises:
        ConfigError: `max_seq_length` leaves no room beside the special tokens.
    """
    engine = Tokenizer.from_str(_with_leading_spaces(tokenizer.backend_tokenizer.to_str()))
    engine.no_padding()
    engine.no_truncation()
    before, after = _special_tokens(engine)
    room = max_seq_length - len(before) - len(after)
    if room < 1:
        raise ConfigError(
            f"max_seq_length is {max_seq_length}, but {len(before) + len(after)} special tokens and a word need more"
        )
    unknown = tokenizer.unk_token_id

    def encode_block(examples: Examples) -> EncodedBlock:
        rows = _Rows(before, after)
        tags = examples.labels
        for sentence, (begin, end) in _sentences(examples):
            pieces = _pieces(engine, examples.texts[0][begin:end], unknown)
            for window in windows([len(piece) for piece in pieces], room):
                own = None if tags is None else tags[begin + window.first : begin + window.last]
                rows.add(sentence, [piece[:room] for piece in pieces[window.begin : window.end]], window, own)
        block = rows.block(labelled=tags is not None)
        said = {name: values for name, values in examples.columns.items() if name == COLUMNS}  # word after word
        return block._replace(columns={**(block.columns or {}), **said})

    return encode_block


class _Rows:
    """The rows of a block, as they grow."""

    def __init__(self, before: list[int], after: list[int]) -> None:
        self._before, self._after = before, after
        self._tokens: list[int] = []
        self._units: list[bool] = []
        self._labels: list[int] = []
        self._lengths: list[int] = []
        self._sentences: list[int] = []

    def add(self, sentence: int, pieces: Sequence[Sequence[int]], window: Window, tags: Any) -> None:
        """Add a window: the ids of its words' pieces, and the tags of those that are answered."""
        tokens, units, labels = list(self._before), [False] * len(self._before), [IGNORED] * len(self._before)
        for word, piece in enumerate(pieces, start=window.begin):
            answered = window.first <= word < window.last
            tokens += piece
            units += [answered, *[False] * (len(piece) - 1)]
            tag = int(tags[word - window.first]) if answered and tags is not None else IGNORED
            labels += [tag, *[IGNORED] * (len(piece) - 1)]
        self._tokens += [*tokens, *self._after]
        self._units += [*units, *[False] * len(self._after)]
        self._labels += [*labels, *[IGNORED] * len(self._after)]
        self._lengths.append(len(tokens) + len(self._after))
        self._sentences.append(sentence)

    def block(self, *, labelled: bool) -> EncodedBlock:
        """Return the rows."""
        lengths = np.array(self._lengths, dtype=np.int64)
        return EncodedBlock(
            np.array(self._tokens, dtype=np.int32),
            lengths,
            lengths.astype(np.int32),
            units=np.array(self._units, dtype=bool),
            labels=np.array(self._labels, dtype=np.int16) if labelled else None,
            columns={GROUPS: np.array(self._sentences, dtype=np.int64)},
        )


def _sentences(examples: Examples) -> Iterator[tuple[int, tuple[int, int]]]:
    """The number of each sentence of a block, and where its words begin and end."""
    numbers = examples.columns[GROUPS]
    begins = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    for begin, end in pairwise([*begins, len(numbers)]):
        yield int(numbers[begin]), (begin, end)


def _pieces(engine: Tokenizer, words: list[str], unknown: int | None) -> list[list[int]]:
    """The token ids of each word of a sentence: at least one, the unknown token where a word has none."""
    encoding = engine.encode(words, is_pretokenized=True, add_special_tokens=False)
    pieces: list[list[int]] = [[] for _ in words]
    for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
        assert word is not None, "a special token that was not asked for"
        pieces[word].append(token)
    for word, piece in enumerate(pieces):
        if not piece:
            if unknown is None:
                raise ModelError(
                    f"the tokeniser makes nothing of the word {words[word]!r} and has no token for the unknown; remove "
                    "such words"
                )
            piece.append(unknown)
    return pieces


def _special_tokens(engine: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a text."""
    inside = engine.encode(["a"], is_pretokenized=True, add_special_tokens=False).ids
    whole = engine.encode(["a"], is_pretokenized=True).ids
    at = next(place for place in range(len(whole)) if whole[place : place + len(inside)] == inside)
    return whole[:at], whole[at + len(inside) :]


def _with_leading_spaces(tokenizer: str) -> str:
    """A byte-level tokeniser that takes each word for one behind a space, as it is in a text."""
    content = json.loads(tokenizer)
    steps = [content.get("pre_tokenizer") or {}]
    steps += steps[0].get("pretokenizers", [])
    for step in steps:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
    return json.dumps(content)
