"""Sentences as words and word pieces, and which of their words data augmentation may replace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.vocabulary import count_unknown, unknown_id
from tinybert_ds.data.word_list import WordTable
from tinybert_ds.errors import ModelError

STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it
    its itself they them their theirs themselves
    this that these those
    am is are was were be been being have has had having do does did doing
    a an the and but if or because as until while of at by for with about against between into through during before
    after above below to from up down in out on off over under
    again further then once here there all any both each few more most other some such no nor not only own same so than
    too very can will just should now
    s t d ll m o re ve y don ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn
    weren won wouldn
    """.split()
)
"""Common English words that are left as they are, those of the published rule: question words are not among them.

Contractions are here as the tokeniser cuts them: "don't" is don, ', t.
"""

_ENGLISH = re.compile(r"[a-z]+")
_CHINESE = re.compile(  # the blocks whose characters BERT's tokeniser takes for words of their own
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b820-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)


class Sentence(NamedTuple):
    """A text as the masked language model's tokeniser sees it."""

    text: str
    words: tuple[str, ...]  # after lower-casing, if the tokeniser lower-cases
    piece_ids: tuple[int, ...]
    word_pieces: tuple[tuple[int, int], ...]  # of each word: its first piece and the one behind its last


class SentenceSplitter:
    """Splits texts into words and pieces.

    Args:
        words: which Chinese characters are a word together; None: each is one.

    Raises:
        ModelError: a tokeniser that is not WordPiece: only there a piece that is no `##` begins a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, words: WordTable | None = None) -> None:
        backend = tokenizer.backend_tokenizer
        kind = type(backend.model).__name__
        if kind != "WordPiece" or backend.pre_tokenizer is None:
            raise ModelError(
                f"the tokeniser {tokenizer.name_or_path!r} is {kind}; data augmentation needs the WordPiece tokeniser "
                "of a BERT. Give a masked language model of that kind with --pretrained_bert_model"
            )
        self._backend: Tokenizer = backend
        self._unknown_id = unknown_id(backend)
        self._words = words

    def split(self, texts: Sequence[str]) -> list[Sentence]:
        """The sentences of texts, in their order."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        found = [self._sentence(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        return found if self._words is None else _with_words(found, self._words)

    def count_unknown(self, texts: Sequence[str]) -> tuple[int, int]:
        """Count the pieces of texts that are unknown to the tokeniser, and all their pieces."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [np.array(encoding.ids) for encoding in encodings]
        return sum(count_unknown(ids, self._unknown_id) for ids in found), sum(map(len, found))

    def _sentence(self, text: str, encoding: Encoding) -> Sentence:
        normalizer = self._backend.normalizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        words = tuple(word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(normal))
        spans: list[tuple[int, int]] = []
        previous = None
        for place, word in enumerate(encoding.word_ids):
            if word == previous and word is not None:
                spans[-1] = (spans[-1][0], place + 1)
            else:
                spans.append((place, place + 1))
            previous = word
        if len(spans) != len(words):  # a special token in the text, such as [MASK], is one piece and three words
            spans = []
        return Sentence(text, words, tuple(encoding.ids), tuple(spans))


def _with_words(sentences: Sequence[Sentence], table: WordTable) -> list[Sentence]:
    """Sentences in which the characters of a word of the list are one word, of as many pieces."""
    lengths = np.array([len(sentence.piece_ids) for sentence in sentences], dtype=np.int64)
    pieces = np.array([piece for sentence in sentences for piece in sentence.piece_ids], dtype=np.int64)
    continues = np.split(table.continues(pieces, lengths), np.cumsum(lengths)[:-1]) if len(pieces) else []
    joined = []
    for sentence, inside in zip(sentences, continues, strict=bool(len(pieces))):
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        for word, span in zip(sentence.words, sentence.word_pieces, strict=False):
            if spans and inside[span[0]] and _CHINESE.fullmatch(word):
                words[-1], spans[-1] = words[-1] + word, (spans[-1][0], span[1])
            else:
                words.append(word)
                spans.append(span)
        joined.append(sentence._replace(words=tuple(words), word_pieces=tuple(spans)) if spans else sentence)
    return joined or list(sentences)


def eligible_words(sentence: Sentence, *, chinese: bool) -> list[int]:
    """Positions of the words that may be replaced: a-z only after lower-casing and no stop word.

    Args:
        chinese: Chinese words may be replaced as well, each character by itself where there is no list of words.
    """
    return [
        place
        for place, word in enumerate(sentence.words)
        if (_ENGLISH.fullmatch(word.lower()) and word.lower() not in STOP_WORDS)
        or (chinese and all(map(_CHINESE.fullmatch, word)))
    ]


def join_words(words: Sequence[str], *, chinese: bool) -> str:
    """Words with a space between two of them; with `chinese` none beside a Chinese character."""
    if not chinese or not words:
        return " ".join(words)
    parts = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        close = not following or _CHINESE.fullmatch(word[-1]) or _CHINESE.fullmatch(following[0])
        parts.append(word if close else f"{word} ")
    return "".join(parts)
