"""Variants of texts by replaced words (arXiv 1909.10351, section 3.2 and algorithm 1).

N variants, K words of a sentence that may be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_tools.masked_words import MaskedWordModel, Masking
from data_tools.neighbours import Neighbours
from data_tools.sentence_words import Sentence, eligible_words, join_words

Candidates = Mapping[int, list[str]]
"""Position of a word in its sentence -> what may stand in its place."""


def find_candidates(
    sentences: Sequence[Sentence],
    model: MaskedWordModel,
    neighbours: Neighbours | None,
    *,
    count: int,
    chinese: bool,
) -> list[Candidates]:
    """Return the candidates of all eligible words of each sentence.

    A word of one piece takes them from the masked language model, one of several from its neighbours among the word
    vectors. A word that finds none, or whose pieces are not known, stands for itself.

    Args:
        sentences: as the model's tokeniser splits them.
        count: candidates of a word, before pieces that begin with ## are dropped.
        chinese: see `eligible_words`.
    """
    maskings: list[tuple[int, int, Masking]] = []  # sentence, word
    compounds: list[tuple[int, int, str]] = []
    found: list[dict[int, list[str]]] = [{} for _ in sentences]
    for number, sentence in enumerate(sentences):
        for place in eligible_words(sentence, chinese=chinese):
            word = sentence.words[place]
            found[number][place] = [word]
            if not sentence.word_pieces:
                continue
            first, end = sentence.word_pieces[place]
            if end == first + 1:
                maskings.append((number, place, Masking(sentence, first)))
            elif neighbours is not None:
                compounds.append((number, place, word))
    predicted = model.candidates([masking for *_, masking in maskings], count)
    for (number, place, _), words in zip(maskings, predicted, strict=True):
        found[number][place] = words or found[number][place]
    near = {} if neighbours is None else neighbours.find(word for *_, word in compounds)
    for number, place, word in compounds:
        found[number][place] = near[word] or found[number][place]
    return list(found)


def draw_variants(
    sentence: Sentence, candidates: Candidates, *, count: int, probability: float, seed: Sequence[int], chinese: bool
) -> list[str]:
    """Return the different texts of `count` draws, in which each word is replaced with a probability.

    Args:
        sentence: the original; a draw that gives it back, token by token, is dropped like any other duplicate.
        candidates: from `find_candidates`.
        probability: of a replacement, by a candidate that is drawn uniformly.
        chinese: see `join_words`.
    """
    places = sorted(candidates)
    if not places:
        return []
    rng = np.random.default_rng(list(seed))
    replaced = rng.random((count, len(places))) < probability  # (N, K)
    sizes = np.array([len(candidates[place]) for place in places])
    choices = (rng.random((count, len(places))) * sizes).astype(np.int64)  # (N, K)
    variants: dict[str, None] = {}
    for row, chosen in zip(replaced, choices.tolist(), strict=True):
        words = list(sentence.words)
        for column in np.flatnonzero(row):
            words[places[column]] = candidates[places[column]][chosen[column]]
        variants[join_words(words, chinese=chinese)] = None
    variants.pop(join_words(sentence.words, chinese=chinese), None)
    variants.pop(sentence.text, None)
    return list(variants)
