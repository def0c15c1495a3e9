"""Lines of text to sentences as token ids.

Imports little, because every worker process imports it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import sentencex
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_tools.sentence_encoder import SentenceEncoder
from tinybert_ds.data.vocabulary import unknown_id


class TextOptions(NamedTuple):
    """What decides about the ids that come of a text."""

    tokenizer_json: str
    dtype: str  # of the ids
    split_language: str | None  # None: a line is a sentence; else the language whose rules split lines


class TokenisedUnit(NamedTuple):
    """Sentences and where documents end among them."""

    tokens: NDArray[np.integer]  # (Σ lengths,)
    lengths: NDArray[np.int32]  # (k,) all positive
    document_ends: NDArray[np.int64]  # (e,) number of sentences before each empty line


class TextTokeniser:
    """Turns lines into ids."""

    def __init__(self, options: TextOptions) -> None:
        self._encoder = SentenceEncoder(options.tokenizer_json, options.dtype)
        self.unknown_id = unknown_id(Tokenizer.from_str(options.tokenizer_json))
        self._language = options.split_language

    def tokenise(self, lines: list[str]) -> TokenisedUnit:
        """Ids of all sentences of some lines; a sentence of no tokens is left out.

        Args:
            lines: stripped; an empty one ends a document.
        """
        sentences: list[str] = []
        ends: list[int] = []
        for line in lines:
            if not line:
                ends.append(len(sentences))
            elif self._language is None:
                sentences.append(line)
            else:
                parts = (sentence.strip() for sentence in sentencex.segment(self._language, line))
                sentences.extend(sentence for sentence in parts if sentence)
        tokens, lengths = self._encoder.encode(sentences)
        kept = np.concatenate([[0], np.cumsum(lengths > 0)])
        return TokenisedUnit(tokens, lengths[lengths > 0], kept[np.array(ends, dtype=np.int64)].astype(np.int64))
