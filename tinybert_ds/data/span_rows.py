"""Questions about contexts as rows of token ids: the question, then a window of the context.

A context that is longer than a row is cut into windows that overlap by a third of a row. Answered are the tokens of the
context and, for "no answer here", the first special token. The windows of a question are rows that follow each other.
T tokens of the rows, P answered ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.batching import BEGINS, ENDS, IGNORED
from tinybert_ds.data.task_batches import EncodedBlock, require_two_types
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.task_spec import GROUPS, PLACES
from tinybert_ds.data.tokenizer import returns_token_types
from tinybert_ds.errors import ConfigError

OVERLAP = 1 / 3
"""Of a row's room, by which two windows of a context overlap: 128 of 384 tokens, about."""
QUESTION_TOKENS = 64
"""Longest question; what is behind them is left out. Never more than half of a row."""


def span_encoder(tokenizer: PreTrainedTokenizerFast, max_seq_length: int) -> Callable[[Examples], EncodedBlock]:
    """Return what tokenises questions and their contexts; `Examples.labels` are (n, 2) characters, -1 without answer.

    Raises:
        ConfigError: `max_seq_length` leaves no room beside the special tokens.
        ModelError: The tokeniser's token types are not 0 for one text and 1 for the other.
    """
    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    room = max_seq_length - engine.num_special_tokens_to_add(True)
    if room < 6:
        raise ConfigError(f"max_seq_length is {max_seq_length}; a question and a window of its context need more")
    if returns_token_types(tokenizer):
        require_two_types(engine, str(tokenizer.name_or_path))
    engine.no_padding()
    engine.no_truncation()
    longest = min(QUESTION_TOKENS, room // 2)
    cutting = Tokenizer.from_str(engine.to_str())
    cutting.enable_truncation(max_length=max_seq_length, stride=int(OVERLAP * room), strategy="only_second")

    def encode_block(examples: Examples) -> EncodedBlock:
        questions, contexts = examples.texts
        pairs = [
            (_cut(engine, question, longest), context) for question, context in zip(questions, contexts, strict=True)
        ]
        numbers, rows = [], []
        for number, encoding in zip(examples.columns[GROUPS], cutting.encode_batch(pairs), strict=True):
            windows = [encoding, *encoding.overflowing]
            numbers += [int(number)] * len(windows)
            rows += windows
        labels = examples.labels
        answers = None if labels is None else np.repeat(labels, np.unique(numbers, return_counts=True)[1], axis=0)
        return _block(rows, numbers, answers, tokenizer.cls_token_id)

    return encode_block


def _cut(engine: Tokenizer, question: str, longest: int) -> str:
    """A question of at most so many tokens, spaces around it left out."""
    question = question.strip()
    while len(encoding := engine.encode(question, add_special_tokens=False)) > longest:
        question = question[: min(encoding.offsets[longest - 1][1], len(question) - 1)]
    return question


def _block(
    rows: Sequence[Any], numbers: Sequence[int], answers: NDArray[Any] | None, null_token: int | None
) -> EncodedBlock:
    """Rows of one block as arrays.

    Args:
        rows: An encoding for each window.
        numbers: The question of each.
        answers: (windows, 2) characters; None: not known.
        null_token: What stands for "no answer"; None, or where a row has none: its first token.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    types = np.array([sum(row.type_ids) for row in rows], dtype=np.int64)
    units, places, labels = [], [], []
    for at, row in enumerate(rows):
        inside = np.array([sequence == 1 for sequence in row.sequence_ids], dtype=bool)
        null = row.ids.index(null_token) if null_token in row.ids else 0
        answered = inside.copy()
        answered[null] = True
        characters = np.where(inside[:, None], np.array(row.offsets, dtype=np.int32).reshape(-1, 2), -1)
        units.append(answered)
        places.append(characters[answered].astype(np.int32))
        if answers is not None:
            labels.append(_marks(characters, answered, null, *answers[at].tolist()))
    return EncodedBlock(
        np.array([token for row in rows for token in row.ids], dtype=np.int32),
        lengths,
        (lengths - types).astype(np.int32),
        units=np.concatenate(units),
        labels=None if answers is None else np.concatenate(labels),
        columns={GROUPS: np.array(numbers, dtype=np.int64), PLACES: np.concatenate(places)},
    )


def _marks(
    characters: NDArray[np.int32], answered: NDArray[np.bool_], null: int, begin: int, end: int
) -> NDArray[np.int16]:
    """Where an answer begins and ends among the tokens of a window, at the null token where it is not whole there."""
    found = np.where(answered, 0, IGNORED).astype(np.int16)
    first = np.flatnonzero((characters[:, 0] >= 0) & (characters[:, 1] > begin))
    last = np.flatnonzero((characters[:, 0] >= 0) & (characters[:, 0] < end))
    whole = begin >= 0 and len(first) > 0 and len(last) > 0
    if whole:
        seen = characters[characters[:, 0] >= 0]
        whole = bool(seen[0, 0] <= begin and end <= seen[-1, 1] and first[0] <= last[-1])
    found[first[0] if whole else null] += BEGINS
    found[last[-1] if whole else null] += ENDS
    return found
