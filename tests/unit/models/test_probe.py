"""What the probe refuses before any training, and what it lets pass."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import ARCHITECTURES, tiny_model
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.probe import check_capture, probe_batch


def all_layers(model) -> CapturingEncoder:
    depth = model.config.num_hidden_layers
    return CapturingEncoder(model, states=range(depth + 1), attention_layers=range(depth), logits=False)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_probe_passes_the_architectures_that_can_be_distilled(model_type):
    encoder = all_layers(tiny_model(model_type).train())
    check_capture(encoder, sequence_length=32)
    assert encoder.training


def modernbert():
    # Layers 0 and 3 attend to everything, layers 1 and 2 to 4 tokens on either side.
    tokens = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return tiny_model("modernbert", local_attention=8, global_attn_every_n_layers=3, **tokens)


def test_sliding_window_layers_are_refused_where_the_window_is_narrower_than_the_sequence():
    model = modernbert()
    with pytest.raises(ModelError, match=r"(?s)2 problems.*attention layer 1 .*sliding window.*attention layer 2 "):
        check_capture(all_layers(model), sequence_length=32)
    check_capture(all_layers(model), sequence_length=5)
    # Four tokens on either side: three quarters of a row of 6 see each other, a full row does not.
    with pytest.raises(ModelError, match="attention layer 1 "):
        check_capture(all_layers(model), sequence_length=6)
    check_capture(CapturingEncoder(model, states=(0, 1, 4), attention_layers=(0, 3), logits=False), sequence_length=32)


def test_a_causal_model_is_refused():
    model = tiny_model("llama", num_key_value_heads=4, head_dim=12)
    with pytest.raises(ModelError, match=r"(?s)causal.*--attention_loss relations_kl"):
        check_capture(all_layers(model), sequence_length=16)


def test_relations_of_layers_that_hide_more_than_padding_pass():
    for model in (modernbert(), tiny_model("llama", num_key_value_heads=4, head_dim=12)):
        encoder = CapturingEncoder(model, states=(), attention_layers=(1,), logits=False, relations=("values",))
        check_capture(encoder, sequence_length=32)


def test_keys_of_grouped_queries_come_back_once_for_each_query_head():
    encoder = all_layers(tiny_model("eurobert", num_key_value_heads=2, head_dim=12))
    check_capture(encoder, sequence_length=16)
    keys = encoder(probe_batch(encoder.model, sequence_length=16)).keys[0]
    assert keys.shape == (2, 4, 16, 12)
    assert torch.equal(keys[:, 0], keys[:, 1])
    assert torch.equal(keys[:, 2], keys[:, 3])
    assert not torch.equal(keys[:, 1], keys[:, 2])


def test_a_model_with_several_attention_calls_a_layer_is_refused():
    model = tiny_model("albert", inner_group_num=2)
    with pytest.raises(ModelError, match="8 attention calls"):
        check_capture(CapturingEncoder(model, states=(), attention_layers=(0,), logits=False), sequence_length=16)


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 64), ("roberta", 64)])
def test_sequences_longer_than_the_position_table_are_refused(model_type, limit):
    encoder = all_layers(tiny_model(model_type))
    check_capture(encoder, sequence_length=limit)
    with pytest.raises(ModelError, match=f"lower --max_seq_length to at most {limit}"):
        check_capture(encoder, sequence_length=limit + 1)


def test_a_model_that_returns_other_states_than_its_depth_says_is_refused():
    model = tiny_model("canine", num_hash_buckets=64, local_transformer_stride=8, downsampling_rate=2, vocab_size=64)
    with pytest.raises(ModelError, match="hidden states for its 4 layers, not 5"):
        check_capture(CapturingEncoder(model, states=(0, 4), attention_layers=(), logits=False), sequence_length=16)


def test_scores_with_a_bias_that_is_no_mask_are_refused(monkeypatch):
    model = tiny_model()
    encoder = all_layers(model)
    attention = type(model.encoder.layer[1].attention.self)
    original = attention.forward
    bias = torch.linspace(-1, 1, 16).view(1, 1, 1, 16)

    def biased(self, hidden_states, attention_mask=None, **options):
        return original(self, hidden_states, bias if self.layer_idx == 1 else attention_mask, **options)

    monkeypatch.setattr(attention, "forward", biased)
    with pytest.raises(ModelError, match=r"attention layer 1 of BertModel .*hides other keys than padding"):
        check_capture(encoder, sequence_length=16)


def test_an_architecture_that_adds_to_its_scores_is_refused(monkeypatch):
    model = tiny_model()
    encoder = all_layers(model)
    attention = type(model.encoder.layer[1].attention.self)
    original = attention.forward
    monkeypatch.setattr(
        attention,
        "forward",
        lambda self, *inputs, **options: original(self, *inputs, position_bias=torch.zeros(1, 4, 16, 16), **options),
    )
    with pytest.raises(ModelError, match="adds position_bias to its scores"):
        check_capture(encoder, sequence_length=16)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_the_probe_has_a_row_with_padding_at_its_end_only_and_a_full_one(model_type):
    model = tiny_model(model_type)
    batch = probe_batch(model, sequence_length=12)
    assert batch.attention_mask.tolist() == [[1] * 9 + [0] * 3, [1] * 12]
    padding = (batch.input_ids == model.config.pad_token_id).long()
    assert torch.equal(padding, 1 - batch.attention_mask)
