"""Students started in closed form that have more of something than their teacher, or tables that few models have."""

from __future__ import annotations

import pytest
import torch

from tests.support.inheriting import inherit
from tests.support.models import random_batch, tiny_model
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.layers import encoder_layers

TASK_TYPES = {"use_task_id": True, "task_type_vocab_size": 3}
NARROW = {"hidden_size": 24, "num_hidden_layers": 2}


def text(count=6):
    return [random_batch([24, 2, 17, 9, 21, 13, 24, 5], seed=number) for number in range(count)]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (("ernie", TASK_TYPES), ("ernie", TASK_TYPES)),
        (("ernie", TASK_TYPES), ("bert", {})),
        (("bert", {}), ("ernie", TASK_TYPES)),
    ],
)
def test_what_an_ernie_adds_for_its_task_is_a_part_of_the_start(teacher, student, tmp_path):
    source, own = tiny_model(teacher[0], **teacher[1]), tiny_model(student[0], seed=5, **student[1])
    inherit(source, own, (0, 1, 2, 3, 4), Blocks(text(), tmp_path))
    batch = random_batch([24, 3, 11], seed=99)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        states = [model(**inputs).last_hidden_state[batch.attention_mask.bool()] for model in (own, source)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


def gradients(student):
    """Let every weight of a student's layers get its gradient; return the layers."""
    batch = random_batch([24, 3, 11], seed=99)
    state = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    weights = torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
    (state * weights)[batch.attention_mask.bool()].sum().backward()
    return encoder_layers(student)


@pytest.mark.parametrize("hidden_size", [24, 48])
def test_neurons_that_the_teacher_has_not_can_learn(hidden_size, tmp_path):
    student = tiny_model(**{**NARROW, "hidden_size": hidden_size}, intermediate_size=80, seed=5, scale=1.0)
    drawn = [layer.intermediate.weight[64:].clone() for layer in encoder_layers(student)]
    inherit(tiny_model(), student, (0, 2, 4), Blocks(text(), tmp_path))
    for layer, before in zip(gradients(student), drawn, strict=True):
        assert torch.equal(layer.intermediate.weight[64:], before)
        assert layer.intermediate.weight.grad.abs().sum(1).min() > 0
        assert layer.output.weight.grad.abs().sum(0).min() > 0


@pytest.mark.parametrize(("hidden_size", "heads"), [(24, 1), (48, 2), (48, 6)])
def test_parts_of_heads_that_the_teacher_has_not_can_learn_and_leave_the_scores(hidden_size, heads, tmp_path):
    teacher = tiny_model()  # 4 heads of 12
    student = tiny_model(hidden_size=hidden_size, num_attention_heads=heads, num_hidden_layers=2, seed=5, scale=1.0)
    inherit(teacher, student, (0, 2, 4), Blocks(text(), tmp_path))
    for layer in gradients(student):
        assert layer.value.weight.grad.abs().sum(1).min() > 0
        assert layer.attention_output.weight.grad.abs().sum(0).min() > 0
        assert (layer.query.weight.grad.abs().sum(1) + layer.key.weight.grad.abs().sum(1)).min() > 0
        assert int((layer.key.weight.abs().sum(1) == 0).sum()) == heads * max(0, layer.head_dim - 12)


def test_a_single_row_of_text_is_enough_for_a_head(tmp_path):
    student = tiny_model(labels=["bad", "good"], **NARROW, intermediate_size=32, seed=5)
    teacher = tiny_model(labels=["bad", "good"])
    row = random_batch([9])
    inherit(teacher, student, (0, 2, 4), Blocks([row], tmp_path))
    inputs = {"input_ids": row.input_ids, "token_type_ids": row.token_type_ids}
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, rtol=1e-3, atol=1e-3)
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())
    assert max(float(value.abs().max()) for value in student.state_dict().values()) < 1e3
