"""Gradient checkpointing: the same outputs and gradients, bit for bit, from layers that run twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.models import random_batch, tiny_model
from tinybert_ds.errors import ModelError
from tinybert_ds.models import wide_products
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.recomputation import recompute_layers

CPU = torch.device("cpu")


def encoder_of(**settings) -> CapturingEncoder:
    """Return a student in training, with dropout."""
    settings = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, **settings}
    model = tiny_model(labels=("no", "yes"), **settings)
    return CapturingEncoder(model, states=(0, 1, 2), attention_layers=(0, 1), logits=True).train()


def outputs_and_gradients(encoder: CapturingEncoder) -> list[torch.Tensor | None]:
    torch.manual_seed(5)
    output = encoder(random_batch([9, 4], pad_id=encoder.config.pad_token_id))
    handed_out = [*output.hidden_states, *output.queries, *output.keys, output.logits]
    total = torch.stack([tensor.float().square().sum() for tensor in handed_out]).sum()
    return [*handed_out, *torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True)]


def count_calls(module: nn.Module) -> list[None]:
    """Return a list that grows with each forward of a module."""
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_layers_give_the_same_bits(dtype, monkeypatch):
    monkeypatch.setattr(wide_products, "multiplies_fast", lambda dtype, device: False)
    encoder = encoder_of().to(dtype)
    calls = count_calls(encoder.model.base_model.encoder.layer[0].intermediate)
    expected = outputs_and_gradients(encoder)
    recompute_layers(encoder, CPU)
    calls.clear()
    caching = []
    encoder.model.register_forward_pre_hook(
        lambda _, args, words: caching.append(words.get("use_cache")), with_kwargs=True
    )
    found = outputs_and_gradients(encoder)
    assert caching == [False], "transformers would warn of a cache"
    assert len(calls) == 2, "forward, and again for the backward pass"
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_products_of_recomputed_layers_are_widened_again(monkeypatch):
    widened = []
    plain = wide_products._widen
    monkeypatch.setattr(wide_products, "_widen", lambda value: (widened.append(None), plain(value))[1])
    monkeypatch.setattr(wide_products, "multiplies_fast", lambda dtype, device: False)
    encoder = encoder_of().bfloat16()
    outputs_and_gradients(encoder)
    once = len(widened)
    recompute_layers(encoder, CPU)
    outputs_and_gradients(encoder)
    assert len(widened) - once > 1.5 * once


def test_layers_run_once_where_nothing_is_trained_or_wanted():
    encoder = encoder_of()
    calls = count_calls(encoder.model.base_model.encoder.layer[0].intermediate)
    outputs_and_gradients(encoder)
    recompute_layers(encoder, CPU)
    outputs_and_gradients(encoder.eval())
    assert len(calls) == 2


def test_an_architecture_without_recomputation_is_refused(monkeypatch):
    encoder = encoder_of()
    monkeypatch.setattr(type(encoder.model), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="--gradient_checkpointing: transformers cannot recompute the layers of Bert"):
        recompute_layers(encoder, CPU)
