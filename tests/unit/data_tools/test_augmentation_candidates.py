"""The candidates of words, against the published rule written down once more: one word, one pass, everything sorted."""

from __future__ import annotations

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM

from data_tools.glove import build_cache, open_cache
from data_tools.masked_words import MaskedWordModel
from data_tools.neighbours import Neighbours
from data_tools.sentence_words import STOP_WORDS, SentenceSplitter
from data_tools.text_variants import find_candidates
from tests.support.models import VOCABULARY, WORDS, masked_lm_directory, model_directory, write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ModelError

LIMIT = 64  # positions of the tiny models
NEAR = "houses roads films movies cities brighter loved hated sawed nights days plotted wall street music".split()
SENTENCES = [
    "The film was a dull story, and we HATED it!",
    "a very good actor; good music... good",
    "houses films movies unknownword x",
    "the of and",
    "",
    "two days & three nights in the city?",
    "Bright music - a long, short, bad plot",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked language model and word vectors of many scales, one of them zero."""
    folder = tmp_path_factory.mktemp("augmentation")
    masked_lm_directory(folder / "mlm", vocabulary=[*VOCABULARY, "##un", "##known"])
    rng = np.random.default_rng(1)
    lines = [
        f"{word} " + " ".join(f"{x:.5f}" for x in rng.normal(size=7) * rng.choice([0.01, 1, 30]))
        for word in [*WORDS, *NEAR, "<unk>"]
    ]
    (folder / "glove.txt").write_text("\n".join([*lines, "zero 0 0 0 0 0 0 0"]) + "\n", encoding="utf-8")
    build_cache(folder / "glove.txt", 100_000, folder / "vectors")
    return folder


def published_candidates(folder, text: str, count: int) -> dict[int, list[str]]:
    """Position of each eligible word -> its candidates, the slow way."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "mlm")
    model = BertForMaskedLM.from_pretrained(folder / "mlm").eval()
    vectors = {}
    for line in (folder / "glove.txt").read_text().splitlines():
        word, *numbers = line.split()
        vectors[word] = [float(number) for number in numbers]
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    pieces = tokenizer.tokenize(text)
    starts = [place for place, piece in enumerate(pieces) if not piece.startswith("##")]
    result = {}
    for place, word in enumerate(words):
        if not re.fullmatch("[a-z]+", word) or word in STOP_WORDS:
            continue
        own = range(starts[place], [*starts, len(pieces)][place + 1])
        if len(own) == 1:
            found = slow_prediction(model, tokenizer, pieces, own[0], count)
        else:
            found = slow_neighbours(vectors, word, count)
        result[place] = found or [word]
    return result


def slow_prediction(model, tokenizer, pieces: list[str], place: int, count: int) -> list[str]:
    masked = [*pieces[:place], "[MASK]", *pieces[place + 1 :]]
    row = ["[CLS]", *masked, "[SEP]", *pieces, "[SEP]"][:LIMIT]
    second = int("token_type_ids" in tokenizer.model_input_names)
    types = ([0] * (len(masked) + 2) + [second] * (len(pieces) + 1))[:LIMIT]
    if place + 1 >= LIMIT:
        return []
    with torch.no_grad():
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(row)])
        scores = model(input_ids=ids, token_type_ids=torch.tensor([types])).logits[0, place + 1]
    best = sorted(range(len(scores)), key=lambda number: -float(scores[number]))[:count]
    return [word for word in tokenizer.convert_ids_to_tokens(best) if not word.startswith("##")]


def slow_neighbours(vectors, word: str, count: int) -> list[str]:
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    if word not in vectors or not any(vectors[word]):
        return []
    others = [other for other in vectors if other not in (word, "<unk>") and any(vectors[other])]
    return sorted(others, key=lambda other: -cosine(vectors[word], vectors[other]))[:count]


def load(folder, batch_tokens=256, dtype=torch.float32):
    tokenizer = load_tokenizer(folder / "mlm", None)
    model = MaskedWordModel(
        folder / "mlm", tokenizer, dtype=dtype, device=torch.device("cpu"), batch_tokens=batch_tokens
    )
    return SentenceSplitter(tokenizer), model


def fast_candidates(folder, texts, count, *, batch_tokens=256, with_vectors=True):
    splitter, model = load(folder, batch_tokens)
    neighbours = Neighbours(open_cache(folder / "vectors"), count) if with_vectors else None
    return find_candidates(splitter.split(texts), model, neighbours, count=count, chinese=False)


@pytest.mark.parametrize("count", [1, 15, 1000])
def test_candidates_are_those_of_the_published_rule(folder, count):
    found = fast_candidates(folder, SENTENCES, count)
    assert found == [published_candidates(folder, text, count) for text in SENTENCES]
    assert {len(words) for sentence in found for words in sentence.values()} != {1} or count == 1


def test_a_model_whose_tokeniser_returns_no_token_types_sees_none(folder, tmp_path):
    shutil.copytree(folder / "mlm", tmp_path / "mlm")
    shutil.copy(folder / "glove.txt", tmp_path)
    path = tmp_path / "mlm" / "tokenizer_config.json"
    content = json.loads(path.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps(content))
    found = fast_candidates(tmp_path, SENTENCES[:2], 15, with_vectors=False)
    assert found == [published_candidates(tmp_path, text, 15) for text in SENTENCES[:2]]
    assert found != fast_candidates(folder, SENTENCES[:2], 15, with_vectors=False)


@pytest.mark.slow
def test_random_sentences_have_the_candidates_of_the_published_rule(folder):
    rng = random.Random(4)
    words = [*(word for word in WORDS if not word.startswith("##")), *NEAR, "?", "'", ",", "3", "zero"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 24))) for _ in range(30)]
    found = fast_candidates(folder, texts, 6)
    assert found == [published_candidates(folder, text, 6) for text in texts]


def test_a_long_text_is_cut_and_words_behind_the_cut_stand_for_themselves(folder):
    long = " ".join(["good", "film"] * 40)
    found = fast_candidates(folder, [long, "a good film"], 9)
    assert found == [published_candidates(folder, long, 9), published_candidates(folder, "a good film", 9)]
    assert found[0][62] != ["good"]  # token 63, the last one that fits
    assert [found[0][place] for place in (63, 64, 79)] == [["film"], ["good"], ["film"]]


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_the_size_of_batches_changes_nothing(folder, batch_tokens):
    assert fast_candidates(folder, SENTENCES, 8, batch_tokens=batch_tokens) == fast_candidates(folder, SENTENCES, 8)


def test_pieces_inside_words_are_dropped_after_the_best_are_taken_and_unknown_stays(folder):
    first, unknown = VOCABULARY.index("##s"), VOCABULARY.index("[UNK]")
    splitter, model = load(folder)
    with torch.inference_mode():
        model._head.predictions.decoder.bias[[first, unknown, VOCABULARY.index("film")]] += torch.tensor(
            [300, 200, 100]
        )
    (sentence,) = splitter.split(["a good story"])
    (found,) = find_candidates([sentence], model, None, count=3, chinese=False)
    assert found == {1: ["[UNK]", "film"], 2: ["[UNK]", "film"]}
    (found,) = find_candidates([sentence], model, None, count=1, chinese=False)
    assert found == {1: ["good"], 2: ["story"]}  # none is left, so the word stands for itself


def test_without_vectors_words_of_several_pieces_stand_for_themselves(folder):
    (found,) = fast_candidates(folder, ["houses and music"], 5, with_vectors=False)
    assert found[0] == ["houses"]
    assert len(found[2]) > 1


def test_a_half_precision_model_finds_nearly_the_same(folder):
    splitter, exact = load(folder)
    _, half = load(folder, dtype=torch.bfloat16)
    sentences = splitter.split(SENTENCES)
    pairs = [
        (set(a[place]), set(b[place]))
        for a, b in zip(
            *(find_candidates(sentences, model, None, count=10, chinese=False) for model in (exact, half)), strict=True
        )
        for place in a
    ]
    assert np.mean([len(a & b) / len(a | b) for a, b in pairs]) > 0.8


def test_chinese_characters_are_masked_one_by_one(tmp_path):
    masked_lm_directory(tmp_path / "mlm", vocabulary=[*VOCABULARY, *"中文好天地人"])
    splitter, model = load(tmp_path)
    (found,) = find_candidates(splitter.split(["中文 film好"]), model, None, count=4, chinese=True)
    assert sorted(found) == [0, 1, 2, 3]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mlm")
    slow = BertForMaskedLM.from_pretrained(tmp_path / "mlm").eval()
    assert found[1] == slow_prediction(slow, tokenizer, ["中", "文", "film", "好"], 1, 4)


def test_models_that_cannot_predict_masked_words_are_refused(folder, tmp_path):
    def refused(directory, message, tokenizer=None):
        with pytest.raises(ModelError, match=message):
            MaskedWordModel(
                directory,
                tokenizer or load_tokenizer(directory, None),
                dtype=torch.float32,
                device=torch.device("cpu"),
                batch_tokens=64,
            )

    refused(model_directory(tmp_path / "encoder"), r"has no head for masked words \(missing: cls\.predictions")
    electra = model_directory(tmp_path / "electra", model_type="electra")
    refused(electra, "head for masked words|needs a BertForMaskedLM")
    write_tokenizer(tmp_path / "larger", vocabulary=[*VOCABULARY, "more", "words", "than", "rows"])
    refused(folder / "mlm", "has ids up to", load_tokenizer(tmp_path / "larger", None))
    tokenizer = load_tokenizer(folder / "mlm", None)
    tokenizer.mask_token = None
    refused(folder / "mlm", "no mask token", tokenizer)
