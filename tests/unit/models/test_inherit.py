"""Students started in closed form: what they must reproduce, for every architecture of the table."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import random_batch, tiny_config, tiny_model

from tinybert_ds.errors import ConfigError, ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.inherit import inherit
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.layers import ARCHITECTURES, embed, encoder_layers, first_state, run_layer
from tinybert_ds.objective import IntermediateObjective

KNOWN = tuple(ARCHITECTURES)


def text(count=6, *, seed=0, pad_id=0):
    """Return blocks of eight rows with lengths from 2 to 24."""
    return [random_batch([24, 2, 17, 9, 21, 13, 24, 5], seed=seed + number, pad_id=pad_id) for number in range(count)]


def states(model, batch):
    depth = model.config.num_hidden_layers
    encoder = CapturingEncoder(model, states=range(depth + 1), attention_layers=range(depth), logits=False)
    with torch.no_grad():
        return encoder(batch)


def lively(model, *, seed=1):
    """Give gains, biases and heads values that nothing would guess."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


@pytest.mark.parametrize("model_type", KNOWN)
def test_the_layers_seen_through_the_table_are_the_models_own(model_type):
    model = lively(tiny_model(model_type))
    batch = random_batch([24, 2, 17], pad_id=model.config.pad_token_id)
    expected, mask = states(model, batch).hidden_states, batch.attention_mask.bool()
    with torch.no_grad():
        state = first_state(model, embed(model, batch))
        for depth, layer in enumerate([None, *encoder_layers(model)]):
            state = state if layer is None else run_layer(layer, state, mask)
            torch.testing.assert_close(state, expected[depth][mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", KNOWN)
def test_a_student_of_its_teachers_shape_reproduces_it_with_its_head(model_type, tmp_path):
    labels = ["bad", "good", "so so"]
    teacher = lively(tiny_model(model_type, labels=labels))
    student = tiny_model(model_type, labels=labels, seed=5)
    padding = teacher.config.pad_token_id
    inheritance = inherit(teacher, student, (0, 1, 2, 3, 4), Blocks(text(pad_id=padding), tmp_path))
    batch = random_batch([24, 3, 11], seed=99, pad_id=padding)  # which it has not seen
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, rtol=1e-4, atol=1e-4)
    mask = batch.attention_mask.bool()
    for own, expected in zip(states(student, batch).hidden_states, states(teacher, batch).hidden_states, strict=True):
        torch.testing.assert_close(own[mask], expected[mask], rtol=1e-4, atol=1e-4)
    assert min(inheritance.states) > 1 - 1e-6
    assert inheritance.head is not None
    assert inheritance.head > 1 - 1e-6
    torch.testing.assert_close(inheritance.projections["2.weight"], torch.eye(48), rtol=0, atol=1e-3)


def doubled(narrow):
    """Return a teacher of twice the width whose states are those of a narrow model twice over: [x, x]."""
    wide = tiny_model(hidden_size=2 * narrow.config.hidden_size, intermediate_size=narrow.config.intermediate_size)
    target, heads = wide.state_dict(), narrow.config.num_attention_heads
    for name, value in narrow.state_dict().items():
        if not value.is_floating_point() or "pooler" in name:
            continue
        if ".self." in name:  # heads twice as large, the new half of each 0; √2 for the larger root of their size
            factor = 2**0.5 if "query" in name else 1.0
            by_head = factor * value.unflatten(0, (heads, -1))
            value = torch.cat([by_head, torch.zeros_like(by_head)], 1).flatten(0, 1)
            value = value if value.dim() == 1 else torch.cat([value, value], 1) / 2
        elif "attention.output.dense.weight" in name:
            by_head = value.unflatten(1, (heads, -1))
            value = torch.cat([by_head, torch.zeros_like(by_head)], 2).flatten(1, 2).repeat(2, 1)
        elif "intermediate.dense.weight" in name:
            value = torch.cat([value, value], 1) / 2
        elif "intermediate" not in name:
            value = torch.cat([value, value], -1 if "embeddings" in name and value.dim() == 2 else 0)
        target[name].copy_(value)
    return wide


def test_a_teacher_whose_states_live_in_a_subspace_is_reproduced_by_a_student_of_its_dimension(tmp_path):
    narrow = tiny_model(hidden_size=24, intermediate_size=32, num_hidden_layers=2, scale=3.0)
    teacher = doubled(narrow)
    batch = random_batch([24, 3, 11], seed=99)
    mask = batch.attention_mask.bool()
    expected = states(teacher, batch)
    twice = torch.cat([states(narrow, batch).hidden_states[2]] * 2, -1)
    torch.testing.assert_close(expected.hidden_states[2][mask], twice[mask], rtol=1e-4, atol=1e-4)

    student = tiny_model(hidden_size=24, intermediate_size=32, num_hidden_layers=2, seed=5)
    inheritance = inherit(teacher, student, (0, 1, 2), Blocks(text(20), tmp_path), ridge=1e-12)
    found = states(student, batch)
    for state in range(3):
        weight, bias = (inheritance.projections[f"{state}.{name}"] for name in ("weight", "bias"))
        projected = found.hidden_states[state] @ weight.T + bias
        torch.testing.assert_close(projected[mask], expected.hidden_states[state][mask], rtol=1e-3, atol=1e-3)
    for layer in range(2):
        scores = [
            out.queries[layer] @ out.keys[layer].transpose(-1, -2) * out.scalings[layer] for out in (found, expected)
        ]
        torch.testing.assert_close(scores[0][0], scores[1][0], rtol=1e-3, atol=1e-3)
