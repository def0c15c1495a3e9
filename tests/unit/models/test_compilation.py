"""Encoders through torch.compile: the same outputs, queries, keys, gradients and names."""

from __future__ import annotations

import logging

import pytest
import torch
import torch._dynamo.utils

from tests.support.models import tiny_model
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.compilation import compile_encoder, compile_encoders
from tinybert_ds.models.probe import probe_batch


def encoder_of(model_type: str = "bert") -> CapturingEncoder:
    """Return an encoder of a single layer: tracing is slow."""
    model = tiny_model(model_type, labels=("no", "yes"), num_hidden_layers=1)
    relations = () if model_type == "bert" else ("queries", "keys")
    return CapturingEncoder(model, states=(0, 1), attention_layers=(0,), logits=True, relations=relations)


def outputs_and_gradient(encoder):
    """Return everything the encoder hands out for two lengths, and a gradient of all of it."""
    outputs = []
    for length in (8, 16):
        output = encoder(probe_batch(encoder.model, sequence_length=length))
        outputs += [*output.hidden_states, *output.queries, *output.keys, output.logits]
    weight = next(
        value for name, value in encoder.named_parameters() if name.endswith((".self.query.weight", ".q.weight"))
    )
    (gradient,) = torch.autograd.grad(torch.stack([tensor.square().sum() for tensor in outputs]).sum(), [weight])
    return [*outputs, gradient]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", pytest.param("mpnet", marks=pytest.mark.exhaustive)])
def test_a_compiled_encoder_gives_the_same_outputs_gradients_and_weight_names(model_type):
    torch._dynamo.reset()
    encoder = encoder_of(model_type)
    expected = outputs_and_gradient(encoder)
    names = list(encoder.state_dict())
    compile_encoder(encoder, backend="eager")  # traces, and leaves out the minutes of generating code
    found = outputs_and_gradient(encoder)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert list(encoder.state_dict()) == names
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_compilation_happens_only_where_it_is_wanted_and_not_on_a_cpu(caplog, monkeypatch):
    compiled = []
    monkeypatch.setattr("tinybert_ds.models.compilation.compile_encoder", compiled.append)
    encoder = encoder_of()
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        compile_encoders([encoder], torch.device("cpu"))
    assert not compiled
    assert "--compile has no effect" in caplog.text
    compile_encoders([encoder], torch.device("meta"))
    assert compiled == [encoder]
