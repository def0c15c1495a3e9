from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_tools.sentence_words import STOP_WORDS, SentenceSplitter, eligible_words, join_words
from tests.support.models import VOCABULARY, write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.data.word_list import load_word_list
from tinybert_ds.errors import ModelError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, vocabulary=[*VOCABULARY, "中", "文", "好"])
    return load_tokenizer(folder, None)


@pytest.fixture(scope="module")
def splitter(tokenizer):
    return SentenceSplitter(tokenizer)


def split(splitter, text):
    (sentence,) = splitter.split([text])
    return sentence


def test_words_are_lower_case_and_punctuation_is_words_of_its_own(splitter):
    sentence = split(splitter, "  The FILM, isn't\tgood!? ")
    assert sentence.words == ("the", "film", ",", "isn", "'", "t", "good", "!", "?")
    assert sentence.text == "  The FILM, isn't\tgood!? "


def test_every_word_knows_its_pieces(splitter, tokenizer):
    sentence = split(splitter, "good houses, loved ☃ films")
    pieces = tokenizer.convert_ids_to_tokens(list(sentence.piece_ids))
    assert [pieces[first:end] for first, end in sentence.word_pieces] == [
        ["good"],
        ["house", "##s"],
        [","],
        ["l", "##o", "##v", "##ed"],
        ["[UNK]"],
        ["film", "##s"],
    ]


def test_a_special_token_in_a_text_leaves_the_pieces_of_its_words_unknown(splitter):
    assert split(splitter, "a good [MASK] film").word_pieces == ()
    assert split(splitter, "a good [MASK] film").words == ("a", "good", "[", "mask", "]", "film")
    assert split(splitter, "").words == split(splitter, "").word_pieces == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The film was not very good, they say", ["film", "good", "say"]),
        ("THE FILM", ["film"]),
        ("3 films in 1999: x2 r2d2", ["films"]),  # digits in a word
        ("don't can't o'clock", ["clock"]),
        ("naïve café", ["naive", "cafe"]),  # the tokeniser takes the accents away
        ("straße наука 中文", []),
        ("?! ...", []),
        ("", []),
    ],
)
def test_a_word_of_letters_a_to_z_that_is_no_stop_word_may_be_replaced(splitter, text, words):
    sentence = split(splitter, text)
    assert [sentence.words[place] for place in eligible_words(sentence, chinese=False)] == words


def test_capitals_do_not_save_a_word_where_the_tokeniser_keeps_them(tmp_path):
    write_tokenizer(tmp_path)
    sentence = split(SentenceSplitter(load_tokenizer(tmp_path, lower_case=False)), "The Film was NOT good")
    assert [sentence.words[place] for place in eligible_words(sentence, chinese=False)] == ["Film", "good"]


def test_chinese_characters_may_be_replaced_if_asked_for(splitter):
    sentence = split(splitter, "中文film好 , the")
    assert [sentence.words[place] for place in eligible_words(sentence, chinese=True)] == ["中", "文", "film", "好"]
    assert [sentence.words[place] for place in eligible_words(sentence, chinese=False)] == ["film"]


def test_characters_of_a_listed_word_are_one_word_of_as_many_pieces(tokenizer, tmp_path):
    (tmp_path / "words.txt").write_text("中文\n文好\n", encoding="utf-8")
    splitter = SentenceSplitter(tokenizer, load_word_list(str(tmp_path / "words.txt"), tokenizer.get_vocab()))
    (sentence, other, empty) = splitter.split(["中文 film 好!", "好 films文好", ""])
    assert sentence.words == ("中文", "film", "好", "!")
    assert sentence.word_pieces == ((0, 2), (2, 3), (3, 4), (4, 5))
    assert other.words == ("好", "films", "文好")
    assert empty.words == ()
    assert [sentence.words[place] for place in eligible_words(sentence, chinese=True)] == ["中文", "film", "好"]
    assert join_words(sentence.words, chinese=True) == "中文film好!"


@pytest.mark.parametrize(
    ("words", "chinese", "text"),
    [
        (["a", "good", "film", "!"], False, "a good film !"),
        (["中", "文", "film", "s", "好"], True, "中文film s好"),
        (["中", "文"], False, "中 文"),
        (["[UNK]", "a"], True, "[UNK] a"),
        ([], True, ""),
    ],
)
def test_words_are_joined_so_that_the_tokeniser_splits_them_again(splitter, words, chinese, text):
    assert join_words(words, chinese=chinese) == text
    if "[UNK]" not in words:
        assert list(split(splitter, text).words) == words


def test_stop_words_are_single_words_of_letters():
    assert len(STOP_WORDS) > 135
    assert all(word.isascii() and word.isalpha() and word.islower() for word in STOP_WORDS)
    assert {"the", "not", "very", "won", "ll", "themselves"} <= STOP_WORDS
    assert not {"film", "good", "never", "us", "one", "could", "what", "who", "how"} & STOP_WORDS


def test_a_tokeniser_of_another_kind_is_refused():

    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(ModelError, match=r"is BPE; data augmentation needs the WordPiece tokeniser"):
        SentenceSplitter(PreTrainedTokenizerFast(tokenizer_object=backend))
