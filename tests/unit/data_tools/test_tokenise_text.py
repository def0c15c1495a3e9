from __future__ import annotations

import numpy as np
import pytest
from transformers import BertTokenizerFast

from data_tools.text_input import TextUnit
from data_tools.tokenise_text import TextOptions, TextTokeniser, TokenisedUnit, tokenise_units
from tests.support.models import write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_json
from tinybert_ds.errors import DataError

HOSTILE = [
    "The City, was GOOD!",
    "control \x07\x0b\x0c\x1c\x1d\x1e\x1f characters",
    "zero\u200bwidth\u200djoiner \u200e\u200f\u202e marks \ufeff",
    "separators\u2028that are\u2029no ends\x85of lines",
    "lone \r carriage return",
    "Ünïcödé ﬁne \u0130stanbul e\u0301 中文 한국어",
    "emoji 👩‍👩‍👧 \U0001f600 \ufffd \ue000",
    "[CLS] [SEP] [MASK] [UNK] [PAD]",
    "x" * 5000,
    "a " * 20_000,
]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> TextOptions:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return TextOptions(tokenizer_json(load_tokenizer(directory, None)), "int16", None)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> BertTokenizerFast:
    directory = tmp_path_factory.mktemp("reference")
    write_tokenizer(directory)
    return BertTokenizerFast.from_pretrained(directory)


def unit(data: bytes, begin: int = 0, first_line: int = 1, ends_input: bool = True) -> TextUnit:
    return TextUnit("some.txt", begin, first_line, data, ends_input)


def sentences_of(result: TokenisedUnit) -> list[list[int]]:
    return [part.tolist() for part in np.split(result.tokens, np.cumsum(result.lengths)[:-1])]


def test_ids_are_those_of_the_hugging_face_tokenizer_on_hostile_text(options, reference):
    result = TextTokeniser(options).tokenise(unit("\n".join(HOSTILE).encode()))
    expected = [reference(line, add_special_tokens=False).input_ids for line in HOSTILE]
    assert sentences_of(result) == [ids for ids in expected if ids]
    assert result.tokens.dtype == np.int16


def test_blank_lines_and_the_end_of_an_input_end_documents(options):
    result = TextTokeniser(options).tokenise(unit(b"the city\nthe\n\n  \t\nthe river\n"))
    assert result.lengths.tolist() == [2, 1, 2]
    assert result.document_ends.tolist() == [2, 2, 3]
    assert result.end_offsets.tolist() == [14, 18, 28]
    inside = TextTokeniser(options).tokenise(unit(b"the city\nthe\n\nthe river\n", begin=100, ends_input=False))
    assert inside.document_ends.tolist() == [2]
    assert inside.end_offsets.tolist() == [114]


def test_line_ends_of_windows_make_no_difference(options):
    unix, windows = (TextTokeniser(options).tokenise(unit(text)) for text in (b"the\n\na city", b"the\r\n\r\na city"))
    assert sentences_of(unix) == sentences_of(windows)
    assert unix.document_ends.tolist() == windows.document_ends.tolist()


def test_a_line_of_no_tokens_is_skipped_and_ends_no_document(options):
    result = TextTokeniser(options).tokenise(unit("the\n\u200b\ncity\n".encode()))
    assert result.lengths.tolist() == [1, 1]
    assert result.document_ends.tolist() == [2]


def test_only_the_byte_order_mark_of_a_file_is_dropped(options, reference):
    marked = TextTokeniser(options).tokenise(unit(b"\xef\xbb\xbf\nthe"))
    assert marked.document_ends.tolist() == [0, 1]
    later = TextTokeniser(options).tokenise(unit(b"\xef\xbb\xbf\nthe", begin=10))
    assert later.document_ends.tolist() == [1]  # a line that holds a character, though no token


def test_prose_is_split_into_sentences(options, reference):
    prose = options._replace(split_language="en")
    result = TextTokeniser(prose).tokenise(unit(b"The city was good. We liked it!  Mr. a saw it.\n\nbad\n"))
    texts = ["The city was good.", "We liked it!", "Mr. a saw it.", "bad"]
    assert sentences_of(result) == [reference(text, add_special_tokens=False).input_ids for text in texts]
    assert result.document_ends.tolist() == [3, 4]


def test_a_byte_that_is_not_utf8_is_named_with_file_offset_and_line(options):
    with pytest.raises(DataError, match=r"some\.txt' is not UTF-8: byte 0xff at offset 1008 of the text, line 43"):
        TextTokeniser(options).tokenise(unit(b"the\nthe \xff\n", begin=1000, first_line=42))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_units(options, workers):
    units = [unit(b"the city\n" * (1 + number % 3), begin=number) for number in range(20)]
    results = list(tokenise_units(iter(units), options, workers))
    assert [len(result.lengths) for result in results] == [1 + number % 3 for number in range(20)]


def test_units_are_read_only_a_little_ahead_of_the_results(options):
    drawn = []

    def units():
        for number in range(1000):
            drawn.append(number)
            yield unit(b"the\n", begin=number)

    results = tokenise_units(units(), options, 2)
    next(results)
    assert len(drawn) <= 8
    results.close()


def test_an_error_in_a_worker_reaches_the_caller(options):
    with pytest.raises(DataError, match="not UTF-8"):
        list(tokenise_units([unit(b"the\n"), unit(b"\xff")], options, 2))
