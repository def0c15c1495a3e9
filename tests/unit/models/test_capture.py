"""What the capturing encoder hands out, against transformers' own eager attention and states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.models import ARCHITECTURES, random_batch, tiny_model
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import ATTENTION_NAME, CapturingEncoder, takes_token_types
from tinybert_ds.types import EncoderOutput

LENGTHS = (11, 16, 5)


def all_layers(model, *, logits: bool = False) -> CapturingEncoder:
    depth = model.config.num_hidden_layers
    return CapturingEncoder(model, states=range(depth + 1), attention_layers=range(depth), logits=logits)


def probabilities(output: EncoderOutput, layer: int, attention_mask: Tensor) -> Tensor:
    """Rebuild post-softmax attention (B, A, S, S) from what was captured."""
    query, key = output.queries[layer], output.keys[layer]
    scores = query @ key.transpose(-1, -2) * output.scalings[layer]
    return scores.masked_fill(~attention_mask.bool()[:, None, None, :], float("-inf")).softmax(dim=-1)


def batch_for(model):
    return random_batch(LENGTHS, pad_id=model.config.pad_token_id)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_scores_rebuilt_from_queries_and_keys_are_those_of_eager_attention(model_type):
    model = tiny_model(model_type)
    batch = batch_for(model)
    with torch.no_grad():
        output = all_layers(model)(batch)
        model.set_attn_implementation("eager")
        segments = {"token_type_ids": batch.token_type_ids} if takes_token_types(model) else {}
        eager = model(batch.input_ids, batch.attention_mask, output_attentions=True, **segments).attentions
    assert len(output.queries) == len(eager) == 4
    real = batch.attention_mask.bool()[:, None, :, None]
    for layer, expected in enumerate(eager):
        assert expected.std() > 0.02  # far from uniform, or anything would match
        difference = (probabilities(output, layer, batch.attention_mask) - expected) * real
        assert difference.abs().max() < 1e-6


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_states_are_the_embedding_output_and_what_each_layer_returns(model_type):
    model = tiny_model(model_type)
    batch = batch_for(model)
    seen: list[Tensor] = []
    layers = [
        module
        for module in model.modules()
        if type(module).__name__ in (f"{prefix}Layer" for prefix in ("Bert", "Roberta", "XLMRoberta", "Camembert"))
        or type(module).__name__ in ("ElectraLayer", "ErnieLayer", "AlbertLayer", "TransformerBlock")
        or type(module).__name__ in ("MobileBertLayer", "NomicBertLayer", "DistilBertLayer")
    ]
    assert layers
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, outputs: seen.append((inputs[0], outputs[0] if isinstance(outputs, tuple) else outputs))
        )
        for layer in layers
    ]
    with torch.no_grad():
        output = all_layers(model)(batch)
    for hook in hooks:
        hook.remove()
    expected = [seen[0][0], *(result for _, result in seen)]
    assert len(expected) == len(output.hidden_states) == 5
    for state, wanted in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=0, atol=0)


def test_only_the_wanted_states_and_layers_come_back_in_the_order_asked_for():
    model = tiny_model()
    batch = batch_for(model)
    with torch.no_grad():
        everything = all_layers(model)(batch)
        some = CapturingEncoder(model, states=(1, 1, 4), attention_layers=(3, 0, 3), logits=False)(batch)
    for state, index in zip(some.hidden_states, (1, 1, 4), strict=True):
        assert torch.equal(state, everything.hidden_states[index])
    for query, key, index in zip(some.queries, some.keys, (3, 0, 3), strict=True):
        assert torch.equal(query, everything.queries[index])
        assert torch.equal(key, everything.keys[index])
    assert some.scalings == pytest.approx((12**-0.5,) * 3)
    assert some.logits is None


def test_hidden_states_nobody_asked_for_are_not_collected():
    model = tiny_model()
    output, _ = CapturingEncoder(model, states=(), attention_layers=(0,), logits=False).run(batch_for(model))
    assert output.hidden_states is None
    output, _ = CapturingEncoder(model, states=(0, 3), attention_layers=(), logits=False).run(batch_for(model))
    assert [state is not None for state in output.hidden_states] == [True, False, False, True, False]


def test_logits_are_those_of_the_plain_classifier():
    model = tiny_model(labels=("bad", "good", "mixed"))
    batch = batch_for(model)
    with torch.no_grad():
        expected = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
        output = all_layers(model, logits=True)(batch)
    assert output.logits.shape == (3, 3)
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-6)
    assert len(output.hidden_states) == 5


def test_the_head_is_not_run_when_nobody_asked_for_logits():
    model = tiny_model(labels=("bad", "good"))
    model.classifier.register_forward_hook(lambda *_: pytest.fail("the head was run"))
    assert all_layers(model)(batch_for(model)).logits is None


def test_a_model_with_one_segment_never_sees_segment_ids():
    model = tiny_model("roberta")
    assert not takes_token_types(model)
    batch = batch_for(model)
    assert batch.token_type_ids.max() == 1  # out of range for RoBERTa's table
    assert all_layers(model)(batch).hidden_states[-1].isfinite().all()


def test_segment_ids_reach_a_model_with_two_segments():
    model = tiny_model()
    batch = batch_for(model)
    encoder = all_layers(model)
    other = batch._replace(token_type_ids=torch.zeros_like(batch.token_type_ids))
    assert not torch.equal(encoder(batch).hidden_states[0], encoder(other).hidden_states[0])


def test_two_encoders_in_one_process_do_not_mix_their_captures():
    teacher, student = tiny_model(seed=1), tiny_model(seed=2)
    batch = batch_for(teacher)
    alone = all_layers(teacher)(batch), all_layers(student)(batch)
    together = all_layers(teacher), all_layers(student)
    for _ in range(2):
        for encoder, expected in zip(together, alone, strict=True):
            assert all(map(torch.equal, encoder(batch).queries, expected.queries))


def test_captured_tensors_need_no_gradient_under_no_grad_and_can_be_saved_by_autograd():
    model = tiny_model()
    with torch.no_grad():
        output = all_layers(model)(batch_for(model))
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in (*output.queries, *output.hidden_states))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_captures_have_the_dtype_of_the_model(dtype):
    model = tiny_model(labels=("bad", "good")).to(dtype)
    output = all_layers(model, logits=True)(batch_for(model))
    tensors = (*output.hidden_states, *output.queries, *output.keys, output.logits)
    assert {tensor.dtype for tensor in tensors} == {dtype}


def gradients(model, batch) -> tuple[Tensor, dict[str, Tensor]]:
    output = all_layers(model)(batch)
    terms = [tensor.square().sum() for tensor in (*output.queries, *output.keys, *output.hidden_states)]
    loss = torch.stack(terms).sum()
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_neither_captures_nor_gradients():
    model = tiny_model().train()
    batch = batch_for(model)
    loss, plain = gradients(model, batch)
    model.activation_checkpointing_enable()
    calls: list[int] = []
    model.encoder.layer[2].attention.self.query.register_forward_hook(lambda *_: calls.append(1))
    again, recomputed = gradients(model, batch)
    assert len(calls) == 2  # the layer was recomputed, so the second call had to be ignored
    assert torch.equal(loss, again)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-6)


def test_checkpointing_with_dropout_recomputes_the_same_gradients():
    model = tiny_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    batch = batch_for(model)
    torch.manual_seed(3)
    loss, plain = gradients(model, batch)
    model.activation_checkpointing_enable()
    torch.manual_seed(3)
    again, recomputed = gradients(model, batch)
    assert torch.equal(loss, again)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-6)


def test_reentrant_checkpointing_which_would_lose_the_gradients_is_noticed():
    model = tiny_model().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(AssertionError, match="use_reentrant=False"):
        all_layers(model)(batch_for(model))


@pytest.mark.parametrize(("before", "after"), [("eager", "eager"), ("sdpa", ATTENTION_NAME)])
def test_an_encoder_that_gives_only_logits_keeps_its_own_kind_of_attention(before, after):
    model = tiny_model(labels=("bad", "good"))
    model.set_attn_implementation(before)
    CapturingEncoder(model, states=(), attention_layers=(), logits=True)(batch_for(model))
    assert model.config._attn_implementation == after


def test_an_architecture_that_shows_its_attention_nowhere_is_refused():
    model = tiny_model("canine", num_hash_buckets=64, local_transformer_stride=8, downsampling_rate=2, vocab_size=64)
    with pytest.raises(ModelError, match="does not go through transformers' AttentionInterface, and where else"):
        all_layers(model)


def test_states_and_layers_that_the_model_lacks_are_refused():
    model = tiny_model()
    with pytest.raises(ModelError, match=r"4 layers have 0\.\.4"):
        CapturingEncoder(model, states=(5,), attention_layers=(), logits=False)
    with pytest.raises(ModelError, match=r"4 layers are 0\.\.3"):
        CapturingEncoder(model, states=(), attention_layers=(4,), logits=False)
    with pytest.raises(ModelError, match="no classification head"):
        CapturingEncoder(model, states=(), attention_layers=(), logits=True)
