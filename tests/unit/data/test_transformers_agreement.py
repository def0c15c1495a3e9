"""Rows and logits beside those of transformers' own AutoTokenizer and model, for every family, on the same texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.families import FAMILIES, LABELS, family_directory
from tests.support.models import tiny_model
from tinybert_ds.data.task_batches import TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, special_ids
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.pretrained import load_classifier
from tinybert_ds.models.saving import save_student

FIRST = ["the film was good", "a bad plot", "we liked the long story and the actor"]
SECOND = ["it was not very dull", "the city", "she hated it"]
TEXTS = {"single sentences": (FIRST,), "pairs": (FIRST, SECOND)}


def our_logits(directory: Path, texts: tuple[list[str], ...]) -> torch.Tensor:
    tokenizer = load_tokenizer(directory, None)
    rows = encode(Examples(Path("train.tsv"), texts, None), tokenizer, 64)
    padding = {"padding": "valid", "pad_id": special_ids(tokenizer).pad}
    source = TaskSource(rows, global_batch_size=8, max_seq_length=64, seed=0, shuffle=False, **padding)
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    model = load_classifier(directory, label_names=LABELS, role="teacher", head="required")
    types = returns_token_types(tokenizer)
    encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True, token_types=types)
    with torch.no_grad():
        return encoder.eval()(batch).logits[np.argsort(batch.sample_ids)]


def their_logits(directory: Path, texts: tuple[list[str], ...]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    # As many positions as ours: what MobileBERT says depends on the padding.
    inputs = tokenizer(*texts, padding=True, pad_to_multiple_of=8, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_on_the_same_texts(tmp_path, family, kind):
    directory = family_directory(tmp_path, family)
    torch.testing.assert_close(
        our_logits(directory, TEXTS[kind]), their_logits(directory, TEXTS[kind]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("family", ["albert", "big_bird", "rembert", "bert, generic tokeniser"])
def test_token_types_would_make_a_difference_to_a_model_whose_tokeniser_returns_none(tmp_path, family):
    directory = family_directory(tmp_path, family)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(FIRST, SECOND, padding=True, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        given = model(**inputs).logits
    assert (given - their_logits(directory, TEXTS["pairs"])).abs().max() > 1e-3


@pytest.mark.parametrize("student", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_an_exported_student_says_the_same_through_transformers_alone(tmp_path, family, student):
    tokenizer = load_tokenizer(family_directory(tmp_path / "teacher", family), None)
    size = max(tokenizer.get_vocab().values()) + 1
    model = tiny_model(student, labels=LABELS, seed=4, vocab_size=size, pad_token_id=tokenizer.pad_token_id)
    save_student(model, tokenizer, tmp_path / "out")
    for texts in TEXTS.values():
        torch.testing.assert_close(
            our_logits(tmp_path / "out", texts), their_logits(tmp_path / "out", texts), rtol=0, atol=1e-5
        )
