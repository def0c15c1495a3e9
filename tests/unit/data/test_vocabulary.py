"""Ids that are not each one token's, or none of the model's, are refused with the token; unknown words are counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from tests.support.families import TOKENIZERS
from tests.support.models import VOCABULARY, tiny_config, write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids
from tinybert_ds.data.vocabulary import count_unknown, judge_unknown, unknown_id
from tinybert_ds.errors import DataError, ModelError


def vocabulary_file(directory: Path, lines, *, begin: str = "", end: str = "\n", vocab_size=None, stated=True) -> Path:
    """Write a vocab.txt, with the files beside it that make transformers read it through AutoTokenizer if `stated`."""
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text(begin + "\n".join(lines) + end, encoding="utf-8")
    if stated:
        (directory / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    if vocab_size is not None:
        tiny_config(vocab_size=vocab_size).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("token", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
def test_a_vocabulary_without_a_special_token_is_refused_with_its_name(tmp_path, token, stated):
    lines = [word for word in VOCABULARY if word != token]
    vocabulary_file(tmp_path, lines, vocab_size=len(VOCABULARY), stated=stated)
    with pytest.raises(ModelError, match=rf"lacks the special token \{token[:-1]}\]"):
        load_tokenizer(tmp_path, True)


def test_a_vocabulary_with_a_byte_order_mark_is_refused(tmp_path):
    vocabulary_file(tmp_path, VOCABULARY, begin="\ufeff", vocab_size=len(VOCABULARY) + 8)
    with pytest.raises(ModelError, match=r"byte-order mark.*first token '\[PAD\]'"):
        load_tokenizer(tmp_path, None)


@pytest.mark.parametrize("vocab_size", [None, len(VOCABULARY)])
def test_a_blank_line_at_the_end_of_a_vocabulary_is_refused_where_it_has_no_embedding(tmp_path, vocab_size):
    vocabulary_file(tmp_path, VOCABULARY, end="\n\n", vocab_size=vocab_size)
    with pytest.raises(ModelError, match="ends with a blank line"):
        load_tokenizer(tmp_path, None)


def test_a_blank_line_at_the_end_does_no_harm_where_the_model_has_a_row_for_it(tmp_path):
    vocabulary_file(tmp_path, VOCABULARY, end="\n\n", vocab_size=len(VOCABULARY) + 8)
    assert special_ids(load_tokenizer(tmp_path, None)).pad == 0


def test_lines_end_where_transformers_ends_them(tmp_path):
    words = [*VOCABULARY, "\x0b", "\u2028", "\x85", "last"]  # which str.splitlines would count as ends
    vocabulary_file(tmp_path, words, vocab_size=len(words))
    assert load_tokenizer(tmp_path, None).convert_tokens_to_ids("last") == len(words) - 1


def test_a_special_token_that_a_file_beside_the_vocabulary_adds_is_taken(tmp_path):
    lines = [word for word in VOCABULARY if word != "[MASK]"]
    vocabulary_file(tmp_path, lines, vocab_size=len(VOCABULARY))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[MASK]": len(lines)}))
    assert load_tokenizer(tmp_path, None).mask_token_id == len(lines)


def test_two_tokens_with_one_id_are_refused_with_both(tmp_path):
    write_tokenizer(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["vocab"]["film"] = state["model"]["vocab"]["city"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ModelError, match="to two tokens, 'city' and 'film'"):
        load_tokenizer(tmp_path, None)


@pytest.mark.parametrize("highest", [len(VOCABULARY), 10**9])
def test_ids_without_an_embedding_are_refused_with_the_token(tmp_path, highest):
    write_tokenizer(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["model"]["vocab"]["film"] = highest
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    if highest < 10**9:
        tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"gives the token 'film' the id {highest}, but"):
        load_tokenizer(tmp_path, None)


@pytest.mark.parametrize(("name", "token"), [("bert", "[UNK]"), ("xlm-roberta", "<unk>"), ("albert", "<unk>")])
def test_the_unknown_token_is_the_one_that_the_tokenisers_model_gives(name, token):
    tokenizer = TOKENIZERS[name]()
    unknown = unknown_id(tokenizer.backend_tokenizer)
    assert unknown == tokenizer.convert_tokens_to_ids(token)
    ids = np.array(tokenizer("the 中文 film").input_ids)
    assert count_unknown(ids, unknown) >= 1


def test_a_byte_level_tokeniser_knows_everything():
    assert unknown_id(TOKENIZERS["roberta"]().backend_tokenizer) is None
    assert unknown_id(Tokenizer(models.BPE({"a": 0}, []))) is None
    assert count_unknown(np.array([0, 1, 2]), None) == 0


def test_more_than_half_unknown_is_refused_unless_allowed_and_more_than_a_twentieth_gives_a_warning():
    with pytest.raises(DataError, match=r"train\.tsv: 51 of 100 tokens are unknown .*51\.0%.*--allow_unknown"):
        judge_unknown(51, 100, text="train.tsv", allowed=False)
    assert "51.0%" in str(judge_unknown(51, 100, text="train.tsv", allowed=True))
    assert "6 of 100" in str(judge_unknown(6, 100, text="train.tsv", allowed=False))
    assert "50 of 100" in str(judge_unknown(50, 100, text="train.tsv", allowed=False))
    assert judge_unknown(5, 100, text="train.tsv", allowed=False) is None
    assert judge_unknown(0, 0, text="train.tsv", allowed=False) is None
