"""What encoders do not compute because nobody reads it: layers above the last one that is read, and poolers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, ModernBertConfig, ModernBertModel

from tests.support.models import ARCHITECTURES, VOCAB_SIZE, random_batch, tiny_config
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.unread_layers import drop_unread_layers

SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
SHARED = ("albert",)
"""One layer that is called again and again: nothing to take out."""


def encoder_of(model_type, states, layers):
    config = tiny_config(model_type, **ARCHITECTURES[model_type])
    torch.manual_seed(0)
    return CapturingEncoder(AutoModel.from_config(config).eval(), states=states, attention_layers=layers, logits=False)


def tensors(encoder, batch):
    with torch.no_grad():
        output = encoder(batch)
    return [*output.hidden_states, *output.queries, *output.keys]


def calls_of(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_last_layer_that_is_read_is_the_last_one_computed_and_nothing_else_changes(model_type):
    encoder = encoder_of(model_type, states=(0, 2), layers=(1,))
    batch = random_batch((9, 4), pad_id=encoder.config.pad_token_id)
    expected = tensors(encoder, batch)
    attention_calls = encoder.run(batch)[1].count
    assert drop_unread_layers(encoder) == (0 if model_type in SHARED else 2)
    assert all(torch.equal(one, other) for one, other in zip(tensors(encoder, batch), expected, strict=True))
    assert attention_calls == 4
    assert encoder.run(batch)[1].count == (4 if model_type in SHARED else 2)


@pytest.mark.parametrize(("states", "layers", "dropped"), [((0, 4), (), 0), ((0,), (3,), 0), ((3,), (0,), 1)])
def test_a_layer_stays_when_its_output_or_its_attention_is_read(states, layers, dropped):
    assert drop_unread_layers(encoder_of("bert", states, layers)) == dropped


def test_layers_stay_where_the_last_state_is_normalised_and_inner_ones_are_not():
    config = ModernBertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        **SPECIAL,
    )
    torch.manual_seed(0)
    model = ModernBertModel(config).eval()
    nn.init.normal_(model.final_norm.weight)
    encoder = CapturingEncoder(model, states=(0, 2), attention_layers=(), logits=False)
    batch = random_batch((9, 4))
    expected = tensors(encoder, batch)
    assert drop_unread_layers(encoder) == 0
    assert len(model.layers) == 4
    assert all(torch.equal(one, other) for one, other in zip(tensors(encoder, batch), expected, strict=True))


def test_a_pooler_that_nobody_reads_is_not_run_and_stays_in_the_model():
    encoder = encoder_of("bert", states=(4,), layers=(0,))
    pooler, names = encoder.model.pooler, list(encoder.model.state_dict())
    calls = calls_of(pooler)
    tensors(encoder, random_batch((9, 4)))
    assert not calls
    assert encoder.model.pooler is pooler
    assert list(encoder.model.state_dict()) == names
