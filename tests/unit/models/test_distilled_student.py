"""The module that trains: what its forward returns, what the optimizer gets of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.support.models import random_batch, tiny_model
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.student import (
    DistilledStudent,
    count_parameters,
    decay_groups,
    freeze_unused,
    take_teacher_check,
)

POOLER = ("pooler.dense.weight", "pooler.dense.bias")


class FirstStates(nn.Module):
    """Stands in for an objective: squared distance of the first states, through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(24, 48)

    def forward(self, student, teacher, batch):
        difference = self.projection(student.hidden_states[0]) - teacher.hidden_states[0]
        loss = (difference.square() * batch.attention_mask[..., None]).sum() / batch.counts.tokens
        return {"loss": loss}


def encoder(states=(0, 1, 2), layers=(0, 1), **options) -> CapturingEncoder:
    model = tiny_model(num_hidden_layers=2, hidden_size=24, intermediate_size=32, **options)
    return CapturingEncoder(model, states=states, attention_layers=layers, logits=options.get("labels") is not None)


def test_the_student_hands_its_output_the_teachers_and_the_batch_to_the_objective():
    student = DistilledStudent(encoder(), FirstStates())
    teacher = CapturingEncoder(tiny_model(seed=5), states=(0, 2, 4), attention_layers=(1, 3), logits=False)
    batch = random_batch((7, 4))
    with torch.no_grad():
        teacher_output = teacher(batch)
    terms = student(batch, teacher_output)
    projected = student.objective.projection(student.encoder(batch).hidden_states[0])
    rows = [
        (projected - teacher_output.hidden_states[0])[row, :length].square().sum() for row, length in ((0, 7), (1, 4))
    ]
    assert terms["loss"].item() == pytest.approx(sum(rows).item() / 11, rel=1e-5)
    terms["loss"].backward()
    assert student.objective.projection.weight.grad.abs().sum() > 0
    assert student.encoder.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("broken", ["hidden_states", "queries", "keys", "logits"])
def test_a_teacher_with_non_finite_output_is_noted_until_somebody_looks(broken):
    student = DistilledStudent(encoder(), FirstStates())
    teacher = CapturingEncoder(
        tiny_model(seed=5, labels=("a", "b")), states=(0, 2, 4), attention_layers=(1, 3), logits=True
    )
    batch = random_batch((7, 4))
    with torch.no_grad():
        sound = teacher(batch)
    assert take_teacher_check(student) == 0
    student(batch, sound)
    assert float(take_teacher_check(student)) == 0
    infinite = {"logits": sound.logits / 0} if broken == "logits" else {}
    if not infinite:
        *first, last = getattr(sound, broken)
        infinite = {broken: (*first, torch.where(last == last.max(), torch.inf, last).to(torch.float16))}
    student(batch, sound._replace(**infinite))
    student(batch, sound)  # a later micro-batch of the same step
    assert math.isnan(take_teacher_check(student))
    assert take_teacher_check(student) == 0


def test_a_pooler_that_nothing_reads_is_frozen_and_all_else_trains():
    student = encoder()
    assert freeze_unused(student) == POOLER
    assert all(p.requires_grad for name, p in student.model.named_parameters() if name not in POOLER)


def test_what_comes_after_the_last_captured_tensor_is_frozen():
    student = encoder(states=(0, 1), layers=(0, 1))
    frozen = freeze_unused(student)
    assert "encoder.layer.1.attention.self.value.weight" in frozen
    assert "encoder.layer.1.output.dense.weight" in frozen
    assert "encoder.layer.1.attention.self.key.weight" not in frozen
    assert not any(name.startswith(("embeddings", "encoder.layer.0")) for name in frozen)


def test_a_classifier_trains_whole_when_logits_are_asked_for():
    student = encoder(states=(), layers=(), labels=("bad", "good"))
    assert freeze_unused(student) == ()


def test_the_head_and_the_pooler_are_frozen_in_a_classifier_that_gives_states_only():
    model = tiny_model(labels=("bad", "good"))
    student = CapturingEncoder(model, states=(4,), attention_layers=(), logits=False)
    expected = (*(f"bert.{name}" for name in POOLER), "classifier.weight", "classifier.bias")
    assert freeze_unused(student) == expected


def test_freezing_leaves_mode_gradients_and_earlier_choices_alone():
    student = encoder().train()
    student.model.embeddings.word_embeddings.weight.requires_grad_(False)
    assert freeze_unused(student) == ("embeddings.word_embeddings.weight", *POOLER)
    assert student.training
    assert all(parameter.grad is None for parameter in student.parameters())


def test_weight_decay_spares_biases_and_layer_norms_and_skips_what_is_frozen():
    module = DistilledStudent(encoder(), FirstStates())
    freeze_unused(module.encoder)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, plain = decay_groups(module, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    decayed_names = {names[id(p)] for p in decayed["params"]}
    plain_names = {names[id(p)] for p in plain["params"]}
    assert len(decayed["params"]) == 3 + 2 * 6 + 1  # embeddings; four attention, two feed-forward matrices; projection
    assert len(plain["params"]) == 2 + 2 * (6 + 4) + 1  # LayerNorms count twice: weight and bias
    assert all(name.endswith("weight") and "LayerNorm" not in name for name in decayed_names)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in plain_names)
    assert not any("pooler" in name for name in decayed_names | plain_names)


def test_an_empty_group_is_left_out():
    assert [group["weight_decay"] for group in decay_groups(nn.LayerNorm(4), 0.01)] == [0.0]
    assert [group["weight_decay"] for group in decay_groups(nn.Linear(4, 4, bias=False), 0.01)] == [0.01]


def test_a_norm_of_another_name_is_spared_too():
    groups = decay_groups(tiny_model("mobilebert"), 0.5)
    assert groups[0]["weight_decay"] == 0.5
    assert all(parameter.dim() == 2 for parameter in groups[0]["params"])


def test_a_shared_parameter_is_grouped_and_counted_once():
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    module[1].weight = module[0].weight
    assert [len(group["params"]) for group in decay_groups(module, 0.1)] == [1, 2]
    assert count_parameters(module) == 9 + 3 + 3
