"""Heads that answer each token, fitted in closed form; those of whole texts are in test_inherit.py."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from tests.support.inheriting import inherit
from tests.support.models import random_batch, tiny_config
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.layers import ARCHITECTURES

SHAPE = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}


def model(model_type, kind=AutoModelForTokenClassification, *, seed=0, **changes):
    config = tiny_config(model_type, **{**SHAPE, **changes})
    config.num_labels = 2 if kind is AutoModelForQuestionAnswering else 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = kind.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return made


def text(count, *, pad_id):
    """Return blocks in which every second token is answered."""
    blocks = [random_batch([24, 2, 17, 9], seed=number, pad_id=pad_id) for number in range(count)]
    return [block._replace(units=block.attention_mask.bool() & (torch.arange(24) % 2 == 0)) for block in blocks]


def answers(model, batch):
    """Return what a model says of each real token, all its outputs side by side."""
    with torch.no_grad():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    found = output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], -1)
    return found[batch.attention_mask.bool()]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_head_for_tokens_is_taken_over_in_the_students_order(model_type, tmp_path):
    teacher, student = model(model_type), model(model_type, seed=5)
    padding = teacher.config.pad_token_id
    found = inherit(teacher, student, (0, 1, 2), Blocks(text(6, pad_id=padding), tmp_path), columns=[1, 2, 0])
    batch = random_batch([24, 3, 11], seed=99, pad_id=padding)
    expected = answers(teacher, batch)[:, [1, 2, 0]]
    torch.testing.assert_close(answers(student, batch), expected, rtol=1e-3, atol=1e-3)
    assert found.head > 1 - 1e-6


@pytest.mark.parametrize("kind", [AutoModelForTokenClassification, AutoModelForQuestionAnswering])
def test_a_narrow_student_answers_tokens_before_its_first_step(kind, tmp_path):
    teacher, student = model("bert", kind, hidden_size=48, num_hidden_layers=4), model("bert", kind, seed=5)
    inheritance = inherit(teacher, student, (0, 2, 4), Blocks(text(12, pad_id=0), tmp_path))
    batch = random_batch([7, 12, 20, 9] * 20, seed=99)
    said = torch.stack([answers(each, batch).flatten() for each in (student, teacher)])
    assert float(torch.corrcoef(said)[0, 1]) > 0.5
    assert 0.3 < inheritance.head < 1
