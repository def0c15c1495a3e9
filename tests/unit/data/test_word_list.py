"""Rows of characters are cut into the likeliest words of a list, or into the fewest."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from tinybert_ds.data import word_list
from tinybert_ds.data.masking import Masking, mask_tokens
from tinybert_ds.data.word_list import load_word_list
from tinybert_ds.errors import ConfigError, DataError

CHARACTERS = "中国人民大学生活动房间很好"
VOCABULARY = {character: number for number, character in enumerate(CHARACTERS, start=5)}
LIST = "中国 50\n人民 40\n大学 60\n大学生 30\n学生 45\n生活 55\n活动 35 n\n房间 20\n很 90\n"


@pytest.fixture
def table(tmp_path):
    return table_of(tmp_path, LIST)


def table_of(folder, text):
    (folder / "words.txt").write_text(text, encoding="utf-8")
    return load_word_list(str(folder / "words.txt"), VOCABULARY)


def cut(table, *texts):
    """Return each text with a space between two words."""
    tokens = np.array([VOCABULARY.get(character, 1) for text in texts for character in text])
    continues = iter(table.continues(tokens, np.array([len(text) for text in texts])).tolist())
    return ["".join(c if next(continues) else f" {c}" for c in text).strip() for text in texts]


def test_a_row_is_cut_into_the_likeliest_words(table):
    found = cut(table, "中国人民", "大学生活动", "大学生活", "房间很好")
    assert found == ["中国 人民", "大学生 活动", "大学 生活", "房间 很 好"]


def test_without_frequencies_the_words_are_as_few_as_can_be(tmp_path):
    table = table_of(tmp_path, "大学\n大学生\n生活\n活动\n")
    assert cut(table, "大学生活动", "大学生活") == ["大学生 活动", "大学生 活"]  # the first word the longer


def test_other_tokens_stand_alone_and_no_word_goes_over_the_end_of_a_row(table):
    assert cut(table, "中", "国") == ["中", "国"]
    assert cut(table, "中x国", "中国") == ["中 x 国", "中国"]


def test_every_cut_is_the_best_of_all_that_there_are(table):
    counts = {word: int(count) for word, count, *_ in (line.split() for line in LIST.splitlines())}
    total = sum(counts.values())

    def cost(words):
        return sum(
            math.log(total) - math.log(counts.get(word, 1)) if len(word) == 1 or word in counts else math.inf
            for word in words
        )

    rng = random.Random(0)
    texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 9))) for _ in range(60)]
    for text, found in zip(texts, cut(table, *texts), strict=True):
        ways = itertools.product([False, True], repeat=len(text) - 1)
        cuts = (
            "".join(f"{c} " if ends else c for c, ends in zip(text, [*way, False], strict=True)).split() for way in ways
        )
        assert cost(found.split()) == pytest.approx(min(map(cost, cuts)))


def test_whole_words_of_the_list_are_masked_or_left_together(table):
    rows = ["中国人民大学生活"] * 200
    tokens = np.array([VOCABULARY[character] for row in rows for character in row])
    nothing = np.zeros(30, dtype=bool)
    masking = Masking(0.4, 20, 4, nothing, np.array([4]), nothing, table)
    masked = mask_tokens(7, np.arange(200), tokens, np.full(200, 8), masking).reshape(200, 8) == 4
    pairs = masked.reshape(200, 4, 2)
    assert (pairs[..., 0] == pairs[..., 1]).mean() > 0.9  # of a word that is chosen a token in ten stays as it is
    assert 0.2 < masked.mean() < 0.5
    alone = mask_tokens(7, np.arange(200), tokens, np.full(200, 8), Masking(0.4, 20, 4, nothing, np.array([4]), None))
    apart = alone.reshape(200, 4, 2) == 4
    assert (apart[..., 0] == apart[..., 1]).mean() < 0.75


def test_lists_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_word_list(str(tmp_path / "none.txt"), VOCABULARY)
    (tmp_path / "b.txt").write_bytes(b"\xd6\xd0\n")
    with pytest.raises(DataError, match="is not UTF-8"):
        load_word_list(str(tmp_path / "b.txt"), VOCABULARY)
    with pytest.raises(DataError, match="not one of its 2 words is of two characters or more"):
        table_of(tmp_path, "中\nfilm\n")
    monkeypatch.setattr(word_list, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install jieba"):
        load_word_list("jieba", VOCABULARY)


def test_the_dictionary_of_jieba_cuts_as_jieba_does():
    jieba = pytest.importorskip("jieba")
    text = "我们在北京大学的图书馆里学习中国现代文学研究生命的起源这家酒店的服务员态度非常好"
    table = load_word_list("jieba", {character: number for number, character in enumerate(dict.fromkeys(text))})
    tokens = np.array([list(dict.fromkeys(text)).index(character) for character in text])
    continues = iter(table.continues(tokens, np.array([len(text)])).tolist())
    found = "".join(c if next(continues) else f" {c}" for c in text).split()
    assert found == jieba.lcut(text, HMM=False)
