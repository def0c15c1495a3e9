"""Token ids of sentences, equal to those of the tokeniser, most of them remembered from an earlier word.

Imports little, because every worker process imports it.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer

REMEMBERED_WORDS = 400_000
REMEMBERED_CHARACTERS = 8_000_000
_SENTENCE_END = "\n"  # no sentence holds one


class SentenceEncoder:
    """Encodes sentences; where the tokeniser treats what stands between spaces alone, each such word only once.

    BERT's tokeniser does: its normaliser changes a character by itself or by the accents that follow, and no accent
    reaches over a space. Text with `[`, where its special tokens begin, is given to it as a whole.

    Args:
        tokenizer_json: the text of a tokenizer.json without truncation and padding.
    """

    def __init__(self, tokenizer_json: str, dtype: DTypeLike) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._dtype = np.dtype(dtype)
        self._words = (
            _Words(self._tokenizer, self._dtype) if _has_independent_words(json.loads(tokenizer_json)) else None
        )

    def encode(self, sentences: list[str]) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
        """The ids of all sentences and the number of ids of each.

        Returns:
            (Σ lengths,) ids and (k,) lengths, some of which may be 0.
        """
        if not sentences:
            return np.empty(0, self._dtype), np.empty(0, np.int32)
        if self._words is None:
            return _encode_whole(self._tokenizer, sentences, self._dtype)
        text = f" {_SENTENCE_END} ".join(sentences)
        if "[" in text:
            parts = ([sentence] if "[" in sentence else sentence.split(" ") for sentence in sentences)
            words = list(itertools.chain.from_iterable([*part, _SENTENCE_END] for part in parts))
        else:
            words = text.split(" ")
            words.append(_SENTENCE_END)
        return self._words.encode(words)


class _Words(dict[str, int]):
    """Numbers of words, and the ids of each in one long array. Word 0 ends a sentence and has no ids."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._unknown: list[str] = []
        self._characters = 0
        self._ids = np.empty(0, dtype)
        self._begins = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)
        self._forget()

    def encode(self, words: list[str]) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
        """The ids of sentences given as words, each sentence followed by the word that ends it; and their lengths."""
        if len(self) > REMEMBERED_WORDS or self._characters > REMEMBERED_CHARACTERS:
            self._forget()
        numbers = np.fromiter(map(self.__getitem__, words), dtype=np.int32, count=len(words))
        if self._unknown:
            self._learn()
        lengths = self._lengths[numbers]
        ends = np.cumsum(lengths)
        total = int(ends[-1])
        # The id at place p of the output lies at p + begin of its word in the table - begin of its word in the output.
        places = np.repeat(self._begins[numbers] - (ends - lengths), lengths) + np.arange(total)
        sentence_ends = ends[numbers == 0]
        return self._ids[places], np.diff(sentence_ends, prepend=0).astype(np.int32)

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        self._unknown.append(word)
        self._characters += len(word)
        return number

    def _learn(self) -> None:
        ids, lengths = _encode_whole(self._tokenizer, self._unknown, self._dtype)
        begins = len(self._ids) + np.cumsum(lengths, dtype=np.int64) - lengths
        self._ids = np.concatenate([self._ids, ids])
        self._begins = np.concatenate([self._begins, begins])
        self._lengths = np.concatenate([self._lengths, lengths.astype(np.int64)])
        self._unknown = []

    def _forget(self) -> None:
        """Start anew, so that memory does not grow with the text."""
        self.clear()
        self[_SENTENCE_END] = 0
        self._characters = 0
        self._ids = np.empty(0, self._dtype)
        self._begins = np.zeros(1, np.int64)
        self._lengths = np.zeros(1, np.int64)


def _encode_whole(
    tokenizer: Tokenizer, texts: list[str], dtype: np.dtype
) -> tuple[NDArray[np.integer], NDArray[np.int32]]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    lengths = np.fromiter((len(encoding) for encoding in encodings), dtype=np.int32, count=len(encodings))
    ids = itertools.chain.from_iterable(encoding.ids for encoding in encodings)
    return np.fromiter(ids, dtype=dtype, count=int(lengths.sum())), lengths


def _has_independent_words(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokeniser gives the same ids when text is cut at spaces, unless a special token is near."""
    normalizer, splitter = tokenizer["normalizer"] or {}, tokenizer["pre_tokenizer"] or {}
    return (
        tokenizer["model"]["type"] == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and splitter.get("type") == "BertPreTokenizer"
        and all("[" in token["content"] for token in tokenizer["added_tokens"])
    )
