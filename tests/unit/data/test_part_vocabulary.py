"""A part of a vocabulary spells as the whole does wherever it has the pieces, and its ids are found in the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.support.models import write_tokenizer
from tests.support.vocabularies import KINDS, sentences
from tinybert_ds.data.part_vocabulary import (
    always_kept,
    choose_tokens,
    ids_in_whole,
    load_state,
    needed_counts,
    part_of,
    vocabulary_of,
)
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids, tokenizer_json
from tinybert_ds.errors import ConfigError


@pytest.fixture(scope="module", params=list(KINDS))
def whole(request):
    return KINDS[request.param]()


def state_of(tokenizer):
    return json.loads(tokenizer_json(tokenizer))


def counts_of(tokenizer, texts):
    ids = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    size = max(tokenizer.get_vocab().values()) + 1
    return np.bincount([number for row in ids for number in row.ids], minlength=size)


def trimmed(tokenizer, texts, keep):
    """Return the part for some texts, and the ids that it keeps."""
    state = state_of(tokenizer)
    kept = choose_tokens(state, needed_counts(state, counts_of(tokenizer, texts)), always_kept(tokenizer), keep)
    part = PreTrainedTokenizerFast(
        tokenizer_object=load_state(part_of(state, kept)),
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )
    return part, kept


def test_words_of_kept_pieces_are_spelled_as_the_whole_one_spells_them(whole):
    texts = sentences(200, seed=1)
    part, kept = trimmed(whole, texts, len(always_kept(whole)) + 60)
    ids = ids_in_whole(part, whole)
    assert np.array_equal(ids, kept)
    same = other = 0
    for word in {word for text in texts for word in text.split()}:
        expected = whole.encode(word)
        found = ids[part.encode(word)].tolist()
        if set(expected) <= set(kept.tolist()):
            assert found == expected, word
            same += 1
        else:
            assert found != expected
            other += 1
    assert min(same, other) > 20


def test_words_of_pieces_that_are_left_out_are_spelled_by_characters_and_not_unknown(whole):
    texts = sentences(200, seed=1)
    part, kept = trimmed(whole, texts, len(always_kept(whole)) + 160)
    assert counts_of(whole, texts)[np.setdiff1d(np.arange(len(whole.get_vocab())), kept)].sum() > 50
    assert part.unk_token_id not in [number for text in texts for number in part.encode(text)]


def test_pairs_and_special_tokens_stand_where_they_stood(whole):
    part, _ = trimmed(whole, ["good film", "bad"], len(always_kept(whole)) + 80)
    ids = ids_in_whole(part, whole)
    found, expected = part("good film", "bad"), whole("good film", "bad")
    assert ids[found["input_ids"]].tolist() == expected["input_ids"]
    assert found.get("token_type_ids") == expected.get("token_type_ids")
    assert ids[special_ids(part).pad] == special_ids(whole).pad
    assert {int(ids[number]) for number in special_ids(part).all_special} == set(special_ids(whole).all_special)


def test_special_tokens_and_bytes_stay_though_no_text_has_them(whole):
    part, _ = trimmed(whole, ["the"], len(always_kept(whole)) + 1)
    if "BPE" in str(type(whole.backend_tokenizer.model)):
        assert len(part.get_vocab()) >= 256
        assert part.unk_token_id not in part.encode("日 ü 😀")
    assert set(whole.all_special_tokens) <= set(part.get_vocab())


def test_no_more_is_kept_than_asked_for_and_nothing_that_the_text_does_not_need(whole):
    fixed = len(always_kept(whole))
    _, kept = trimmed(whole, sentences(200), fixed + 7)
    assert len(kept) == fixed + 7
    _, kept = trimmed(whole, ["the good film"], 10_000)
    assert fixed < len(kept) < fixed + 40


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with bytes for the unknown"])
def test_every_merge_of_a_part_makes_a_token_of_it_out_of_tokens_of_it(kind):
    whole = KINDS[kind]()
    state = state_of(whole)
    needed = needed_counts(state, counts_of(whole, sentences(200)))
    for keep in range(len(always_kept(whole)) + 1, len(always_kept(whole)) + 120, 7):
        part = part_of(state, choose_tokens(state, needed, always_kept(whole), keep))
        made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in part["model"]["merges"]}
        longer = {token for token in vocabulary_of(part) if len(token) > 1} - {
            t["content"] for t in part["added_tokens"]
        }
        assert longer <= made | {f"<0x{value:02X}>" for value in range(256)}


def test_counts_of_what_is_needed_by_hand(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, None)
    state, vocabulary = state_of(tokenizer), tokenizer.get_vocab()
    needed = needed_counts(state, counts_of(tokenizer, ["it it roads"]))
    expected = {"it": 2, "road": 1, "##s": 1, "i": 2, "##t": 2, "r": 1, "##o": 1, "##a": 1, "##d": 1}
    assert {token: int(needed[number]) for token, number in vocabulary.items() if needed[number]} == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state["model"]["vocab"].update({"new": 5}), "1 of its tokens are not in the teacher's"),
        (lambda state: state["normalizer"].update(lowercase=False), "another normalizer"),
        (lambda state: state["model"].update(max_input_chars_per_word=5), "WordPiece with other settings"),
    ],
)
def test_a_tokeniser_that_is_no_part_is_refused_with_the_reason(tmp_path, change, said):
    for name in ("whole", "part"):
        write_tokenizer(tmp_path / name)
    path = tmp_path / "part" / "tokenizer.json"
    state = json.loads(path.read_text())
    del state["model"]["vocab"]["a"]
    change(state)
    path.write_text(json.dumps(state))
    part = PreTrainedTokenizerFast(
        tokenizer_file=str(path), **load_tokenizer(tmp_path / "whole", None).special_tokens_map
    )
    with pytest.raises(ConfigError, match=said):
        ids_in_whole(part, load_tokenizer(tmp_path / "whole", None))


def test_special_tokens_that_mean_something_else_are_refused(tmp_path):
    write_tokenizer(tmp_path)
    whole = load_tokenizer(tmp_path, None)
    named = {**whole.special_tokens_map, "pad_token": "[MASK]"}
    part = PreTrainedTokenizerFast(tokenizer_object=load_state(state_of(whole)), **named)
    with pytest.raises(ConfigError, match=r"other special tokens \(pad\)"):
        ids_in_whole(part, whole)
