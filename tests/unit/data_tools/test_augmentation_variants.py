from __future__ import annotations

import pytest

from data_tools.sentence_words import Sentence
from data_tools.text_variants import draw_variants

WORDS = ("the", "film", "was", "good", "!")
SENTENCE = Sentence("The film was good!", WORDS, (1, 2, 3, 4, 5), ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)))
CANDIDATES = {1: ["film", "movie", "plot"], 3: ["bad", "dull"]}


def draw(candidates=CANDIDATES, *, count=50, probability=0.5, seed=(0,), sentence=SENTENCE):
    return draw_variants(sentence, candidates, count=count, probability=probability, seed=seed, chinese=False)


def test_only_words_with_candidates_change_and_only_to_one_of_them():
    variants = [variant.split() for variant in draw()]
    assert {len(words) for words in variants} == {5}
    assert all((words[0], words[2], words[4]) == ("the", "was", "!") for words in variants)
    assert {words[1] for words in variants} == {"film", "movie", "plot"}
    assert {words[3] for words in variants} == {"good", "bad", "dull"}


def test_all_different_variants_are_found_and_the_original_is_none_of_them():
    variants = draw(count=2000)
    assert len(variants) == len(set(variants)) == 3 * 3 - 1
    assert "the film was good !" not in variants


def test_no_more_variants_come_than_draws():
    assert len(draw(count=3)) <= 3
    assert len(draw({1: [f"word{number}" for number in range(10_000)]}, count=40, probability=1.0)) == 40


@pytest.mark.parametrize(("probability", "variants"), [(0.0, []), (1.0, ["the movie was bad !"])])
def test_probability_nought_changes_nothing_and_one_changes_every_word(probability, variants):
    assert draw({1: ["movie"], 3: ["bad"]}, probability=probability) == variants


def test_words_are_replaced_with_the_probability_asked_for_and_candidates_are_drawn_uniformly():
    words = tuple(f"a{number}" for number in range(400))
    sentence = Sentence(" ".join(words), words, (), ())
    candidates = {place: ["x", "y", "z", "u"] for place in range(400)}
    (variant,) = draw(candidates, count=1, probability=0.4, sentence=sentence)
    replaced = [word for word in variant.split() if not word.startswith("a")]
    assert 0.3 < len(replaced) / 400 < 0.5
    assert all(0.15 < replaced.count(word) / len(replaced) < 0.35 for word in "xyzu")


def test_the_seed_alone_decides_about_the_draws():
    assert draw(seed=(1, 2, 0)) == draw(seed=(1, 2, 0))
    assert len({tuple(draw(seed=seed)) for seed in [(1, 2, 0), (1, 2, 1), (1, 3, 0), (2, 2, 0)]}) == 4


def test_a_text_without_words_to_replace_has_no_variants():
    assert draw({}) == []
    assert draw({}, sentence=Sentence("", (), (), ())) == []


def test_a_text_that_is_written_as_its_words_are_joined_is_no_variant_of_itself():
    sentence = SENTENCE._replace(text="the movie was good !")
    assert "the movie was good !" not in draw(count=2000, sentence=sentence)
