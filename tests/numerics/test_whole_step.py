"""Gradients of a whole step, both models and all losses, against the published formulas with published padding."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import BertModel

from tests.benchmarks.published_form import MaterialisedEncoder, published_loss
from tests.support.models import random_batch, tiny_config
from tests.support.numerics import relative_error
from tinybert_ds.losses import gradients_only
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import IntermediateObjective
from tinybert_ds.types import Counts

LENGTHS = (64, 41, 7, 1)


@pytest.fixture
def models():
    """Return a teacher of 4 layers, a student of 2 and the projection, in float64."""
    torch.manual_seed(0)
    teacher = BertModel(tiny_config()).eval()
    student = BertModel(tiny_config(num_hidden_layers=2, hidden_size=24)).train()
    for module in (teacher, student):  # random models score next to nothing
        for name, parameter in module.named_parameters():
            if name.endswith(("query.weight", "key.weight")):
                parameter.data.mul_(8.0)
    projection = nn.Linear(24, 48)
    return teacher.double(), student.double(), projection.double()


@pytest.fixture
def batch():
    rows, length = len(LENGTHS), max(LENGTHS)
    counts = Counts(float(rows), float(rows * length), float(rows * length**2))
    return random_batch(LENGTHS)._replace(counts=counts)


def published_gradients(models, batch, dtype):
    """Return the gradients by the student's parameters and the projection's, by name, as published."""
    teacher, student, projection = models
    peer = MaterialisedEncoder(student, projection).to(dtype)
    with torch.no_grad():
        target = MaterialisedEncoder(teacher, None).to(dtype)(batch)
    published_loss(peer(batch), target).backward()
    found = {f"encoder.{name}": parameter.grad for name, parameter in peer.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def our_gradients(models, batch, dtype, with_value):
    """Return the gradients of the distilled student, under the names of `published_gradients`."""
    teacher, student, projection = models
    objective = IntermediateObjective(2, 24, 48, projection="shared", padding="reference")
    objective.projections[0].load_state_dict(projection.state_dict())
    teaching = CapturingEncoder(teacher, states=(0, 2, 4), attention_layers=(1, 3), logits=False).to(dtype)
    encoder = CapturingEncoder(student, states=range(3), attention_layers=range(2), logits=False)
    module = DistilledStudent(encoder, objective).to(dtype)
    with torch.no_grad():
        lesson = teaching(batch)
    with nullcontext() if with_value else gradients_only():
        module(batch, lesson)["loss"].backward()
    found = {
        name.replace("objective.projections.0", "encoder.projection"): parameter.grad
        for name, parameter in module.named_parameters()
    }
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("with_value", [True, False])
def test_gradients_of_a_whole_step_are_the_published_ones_in_float64(models, batch, with_value):
    expected = published_gradients(models, batch, torch.float64)
    found = our_gradients(models, batch, torch.float64, with_value)
    assert found.keys() == expected.keys()
    assert len(found) == 5 + 2 * 16 + 2  # embeddings, layers, projection
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) <= 1e-10, name


@pytest.mark.parametrize("with_value", [True, False])
def test_gradients_of_a_float32_step_are_at_most_three_times_as_far_off_as_the_published_ones(
    models, batch, with_value
):
    exact = published_gradients(models, batch, torch.float64)
    published = published_gradients(models, batch, torch.float32)
    found = our_gradients(models, batch, torch.float32, with_value)
    own, theirs = (
        relative_error([gradients[name] for name in exact], exact.values()) for gradients in (found, published)
    )
    assert 0 < theirs < 1e-5
    assert own <= 3 * theirs
