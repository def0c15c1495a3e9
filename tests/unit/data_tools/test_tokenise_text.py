from __future__ import annotations

import json
import random

import numpy as np
import pytest
from transformers import BertTokenizerFast

from data_tools import sentence_encoder
from data_tools.sentence_encoder import SentenceEncoder
from data_tools.tokenise_text import TextOptions, TextTokeniser, TokenisedUnit
from tests.support.models import write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_json

HOSTILE = [
    "The City, was GOOD!",
    "control \x07\x0b\x0c\x1c\x1d\x1e\x1f characters in\x0bside\x1cwords\x00too",
    "zero\u200bwidth\u200djoiner \u200e\u200f\u202e marks \ufeff",
    "separators\u2028that are\u2029no ends\x85of lines",
    "lone \r carriage return",
    "Ünïcödé ﬁne \u0130stanbul e\u0301 中文 한국어 ΣΑΣ Σ ẞ",
    "emoji 👩‍👩‍👧 \U0001f600 \ufffd \ue000",
    "accents \u0301 alone \u0323\u0301 and e\u0323 \u0301 e\u0301\u0323 behind spaces",
    "[CLS] [SEP] [MASK] [UNK] [PAD] the[MASK]city [ MASK ] [mask] \uff3bMASK\uff3d",
    "tab\tbed words\t \tand  several   spaces",
    "no\xa0break\u2003spaces\u3000of\u1680all kinds",
    "\u061cعربى עברית हिन्दी ไทย",
    "x" * 5000,
    "a " * 20_000,
    "don't u.s.a. 3.14 a-b_c/d #tag @user ~~~",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def options(directory) -> TextOptions:
    return TextOptions(tokenizer_json(load_tokenizer(directory, None)), "int16", None)


@pytest.fixture(scope="module")
def reference(directory) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(directory)


def sentences_of(result: TokenisedUnit) -> list[list[int]]:
    return [part.tolist() for part in np.split(result.tokens, np.cumsum(result.lengths)[:-1])]


def random_sentences(count: int) -> list[str]:
    """Sentences of characters that tokenisers treat in their own ways, each next to each."""
    rng = random.Random(0)
    pieces = ["the", "city", "##s", "A", "é", "e\u0301", "\u0301", "\u0323", " ", " ", " ", "\t", "\xa0", "\u200d", "."]
    pieces += ["中", "\x00", "\x1c", "\u2028", "'", "[", "]", "[MASK]", "Σ", "\ufb01", "\U0001f600", "-", "\u202e", "ß"]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 30))).strip() for _ in range(count)]


def test_ids_are_those_of_the_hugging_face_tokenizer_on_hostile_text(options, reference):
    lines = [*HOSTILE, *random_sentences(3000)]
    result = TextTokeniser(options).tokenise(lines)
    expected = [reference(line, add_special_tokens=False).input_ids for line in lines if line]
    assert sentences_of(result) == [ids for ids in expected if ids]
    assert result.tokens.dtype == np.int16


def test_what_is_remembered_and_forgotten_makes_no_difference(options, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "REMEMBERED_WORDS", 50)
    encoder = SentenceEncoder(options.tokenizer_json, "int16")
    sentences = [sentence for sentence in random_sentences(300) if sentence]
    tokens, lengths = SentenceEncoder(options.tokenizer_json, "int16").encode(sentences)
    parts = [encoder.encode(sentences[begin : begin + 7]) for begin in range(0, len(sentences), 7)]
    assert np.concatenate([part[0] for part in parts]).tolist() == tokens.tolist()
    assert np.concatenate([part[1] for part in parts]).tolist() == lengths.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}},
        {
            "added_tokens": [
                {
                    "id": 5,
                    "content": "the city",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ]
        },
    ],
)
def test_tokenisers_for_which_words_are_not_independent_get_whole_sentences(options, change):
    changed = json.dumps({**json.loads(options.tokenizer_json), **change})
    encoder = SentenceEncoder(changed, "int32")
    tokens, lengths = encoder.encode(["a the city", "the", "the  city"])
    backend = encoder._tokenizer
    expected = [backend.encode(text, add_special_tokens=False).ids for text in ("a the city", "the", "the  city")]
    assert [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])] == expected


def test_empty_lines_end_documents(options):
    result = TextTokeniser(options).tokenise(["the city", "the", "", "", "the river", ""])
    assert result.lengths.tolist() == [2, 1, 2]
    assert result.document_ends.tolist() == [2, 2, 3]
    assert TextTokeniser(options).tokenise(["the city", "the", "", "the river"]).document_ends.tolist() == [2]


def test_no_lines_and_empty_lines_alone_are_no_sentences(options):
    assert TextTokeniser(options).tokenise([]).tokens.tolist() == []
    assert TextTokeniser(options).tokenise(["", ""]).document_ends.tolist() == [0, 0]


def test_a_line_of_no_tokens_is_skipped_and_ends_no_document(options):
    result = TextTokeniser(options).tokenise(["the", "\u200b", "city", ""])
    assert result.lengths.tolist() == [1, 1]
    assert result.document_ends.tolist() == [2]


def test_prose_is_split_into_sentences(options, reference):
    prose = options._replace(split_language="en")
    result = TextTokeniser(prose).tokenise(["The city was good. We liked it!  Mr. a saw it.", "", "bad"])
    texts = ["The city was good.", "We liked it!", "Mr. a saw it.", "bad"]
    assert sentences_of(result) == [reference(text, add_special_tokens=False).input_ids for text in texts]
    assert result.document_ends.tolist() == [3]


def test_chinese_prose_is_split_by_its_own_rules(options):
    result = TextTokeniser(options._replace(split_language="zh")).tokenise(["今天天气很好。我们去公园。你来吗。好。"])
    assert len(result.lengths) == 4
