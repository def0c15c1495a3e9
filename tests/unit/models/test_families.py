"""Every family of the table in the README: what is captured of it, against transformers' own attention and logits.

B batch rows, S sequence length, A heads, D head size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, FunnelConfig

from tests.support.models import ARCHITECTURES, random_batch, tiny_model
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.layer_map import full_attention_layers
from tinybert_ds.models.probe import check_capture
from tinybert_ds.models.projections import FAMILIES, VECTORS
from tinybert_ds.types import Batch

LABELS = ("bad", "good", "mixed")
TOKENS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
GROUPED = {**TOKENS, "num_key_value_heads": 2, "head_dim": 12}


class Family(NamedTuple):
    """An architecture, and where an independent computation finds what it needs."""

    model_type: str
    changes: Mapping[str, Any] = {}
    output: str = "attention.output.dense"  # end of the name of what projects the heads' results
    attention: str = ""  # of a family that is read behind its projections: name of a layer's attention
    exact: bool = True  # whether transformers gives the probabilities that weigh the values
    scale: float = 8.0  # of its matrices, so that its attention is far from uniform


BERT = "encoder.layer.{}.attention.self"
ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66}
GROUPS = {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
HOOKED: Mapping[str, Family] = {
    "deberta": Family("deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, attention=BERT),
    "deberta-v3": Family(
        "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}
        | {"norm_rel_ebd": "layer_norm", "type_vocab_size": 0, "position_biased_input": False},
        attention=BERT,
    ),
    "mpnet": Family(
        "mpnet", {"pad_token_id": 1}, output="attention.attn.o", attention="encoder.layer.{}.attention.attn"
    ),
    "big_bird": Family("big_bird", {"attention_type": "original_full"}, attention=BERT),
    "rembert": Family("rembert", {"input_embedding_size": 24, "output_embedding_size": 24}, attention=BERT),
    "convbert": Family("convbert", {"embedding_size": 48}, attention=BERT),
    "roformer": Family("roformer", {"embedding_size": 48}, attention=BERT),
    "megatron-bert": Family("megatron-bert", {}, attention=BERT),
    "longformer": Family("longformer", {**ROBERTA, "attention_window": 8}, attention=BERT, exact=False),
    "ibert": Family("ibert", ROBERTA, attention=BERT),
    "nystromformer": Family(
        "nystromformer", {"num_landmarks": 64, "segment_means_seq_len": 64}, attention=BERT, exact=False
    ),
    "luke": Family("luke", {"entity_vocab_size": 8, "entity_emb_size": 8, **ROBERTA}, attention=BERT),
    "squeezebert": Family(
        "squeezebert",
        {"embedding_size": 48, **GROUPS},
        output="post_attention.conv1d",
        attention="encoder.layers.{}.attention",
    ),
    "xlm": Family("xlm", {"pad_index": 0}, output="out_lin", attention="attentions.{}"),
    "flaubert": Family("flaubert", {"pad_index": 0}, output="out_lin", attention="attentions.{}"),
}
INTERFACE: Mapping[str, Family] = {
    **{name: Family(name, changes) for name, changes in ARCHITECTURES.items()},
    "albert": Family("albert", ARCHITECTURES["albert"], output="attention.dense"),
    "distilbert": Family("distilbert", output="attention.out_lin"),
    "nomic_bert": Family("nomic_bert", output="o_proj"),
    "modernbert": Family(
        "modernbert", {**TOKENS, "local_attention": 8, "global_attn_every_n_layers": 3}, output="attn.Wo"
    ),
    "eurobert, grouped": Family("eurobert", GROUPED, output="o_proj"),
    "llama, grouped": Family("llama", GROUPED, output="o_proj"),
    "qwen2, grouped": Family("qwen2", {**TOKENS, "num_key_value_heads": 2}, output="o_proj"),
    "qwen3, grouped": Family("qwen3", GROUPED, output="o_proj"),
    "gemma, grouped": Family("gemma", GROUPED, output="o_proj"),
    "gemma3, bidirectional": Family(
        "gemma3_text",
        {**GROUPED, "sliding_window": 8, "use_bidirectional_attention": True, "sliding_window_pattern": 2},
        output="o_proj",
    ),
}
ALL = {**INTERFACE, **HOOKED}
LENGTHS = (11, 16, 5)


def model_of(family: Family, labels=None):
    return tiny_model(family.model_type, labels=labels, scale=family.scale, **family.changes)


def batches(model) -> list[Batch]:
    """Pairs and single texts, padded and full."""
    padding = model.config.pad_token_id or 0
    pairs, full = random_batch(LENGTHS, pad_id=padding), random_batch((16, 16), seed=1, pad_id=padding)
    return [pairs, full._replace(token_type_ids=torch.zeros_like(full.token_type_ids), padded=False)]


def inputs_of(model, batch: Batch) -> dict[str, Tensor]:
    """What a user of transformers would call the model with."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if CapturingEncoder(model, states=(), attention_layers=(), logits=False)._takes_token_types:
        inputs["token_type_ids"] = batch.token_type_ids
    return inputs


@contextmanager
def seen_by(model, end: str):
    """Collect what goes into the modules whose names end so."""
    seen: list[Tensor] = []
    modules = [module for name, module in model.named_modules() if name.endswith(end)]
    assert modules
    hooks = [module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for module in modules]
    yield seen
    for hook in hooks:
        hook.remove()


def in_heads(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(2, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("name", ALL)
def test_probabilities_weigh_the_captured_values_and_belong_to_the_captured_queries_and_keys(name):
    family = ALL[name]
    if not family.exact:
        pytest.skip("its probabilities are not those of whole rows")
    model = model_of(family)
    for batch in batches(model):
        with torch.no_grad():
            encoder = CapturingEncoder(model, states=(), attention_layers=range(4), logits=False, relations=VECTORS)
            output = encoder(batch)
            if family in INTERFACE.values():
                model.set_attn_implementation("eager")
            with seen_by(model, family.output) as results:
                eager = model(**inputs_of(model, batch), output_attentions=True).attentions
        assert len(eager) == len(results) == 4
        real = batch.attention_mask.bool()[:, None, :, None]
        if name == "squeezebert":
            eager = [scores.softmax(dim=-1) for scores in eager]  # it returns what it takes the softmax of
        for layer, probabilities in enumerate(eager):
            assert probabilities.std() > 0.04 / 16  # far from uniform, or anything would match
            query, key, value = output.queries[layer], output.keys[layer], output.values[layer]
            assert query.shape == key.shape == value.shape
            result = results[layer].transpose(1, 2) if name == "squeezebert" else results[layer]
            heads = in_heads(result, model.config.num_attention_heads)[:, : value.shape[1]]
            assert ((probabilities @ value - heads) * real).abs().max() < 1e-5 * max(1, heads.abs().max())
            if not (family.attention and FAMILIES[family.model_type].no_scores):
                scores = query @ key.transpose(-1, -2) * output.scalings[layer]
                found = scores.masked_fill(probabilities == 0, float("-inf")).softmax(dim=-1)
                assert ((found - probabilities).nan_to_num() * real).abs().max() < 1e-5


def projected(model, family: Family, layer: int, kind: str, states: Tensor) -> Tensor:
    """Return queries, keys or values (B, S, A·D) of a layer's input, by its weights."""
    attention = model.get_submodule(family.attention.format(layer))
    if family.model_type == "megatron-bert":
        states = model.encoder.layer[layer].attention.ln(states)
    if family.model_type == "deberta":
        parts = attention.in_proj.weight.chunk(3 * 4)[VECTORS.index(kind) :: 3]
        bias = {"queries": attention.q_bias, "values": attention.v_bias}.get(kind, torch.zeros(()))
        return states @ torch.cat(parts).T + bias
    name = FAMILIES[family.model_type].names[VECTORS.index(kind)]
    projection = attention.get_submodule(name)
    return states @ projection.weight.squeeze(-1).T + projection.bias


@pytest.mark.parametrize("name", HOOKED)
def test_what_is_read_behind_projections_is_what_their_weights_make_of_the_layers_input(name):
    family = HOOKED[name]
    model = model_of(family)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # biases count, too
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for batch in batches(model):
        with torch.no_grad():
            encoder = CapturingEncoder(model, states=(), attention_layers=(3, 1), logits=False, relations=VECTORS)
            output = encoder(batch)
            states = model(**inputs_of(model, batch), output_hidden_states=True).hidden_states
            for kind in VECTORS:
                for place, layer in enumerate((3, 1)):
                    expected = projected(model, family, layer, kind, states[layer])
                    found = getattr(output, kind)[place].transpose(1, 2).flatten(2)
                    assert ((found - expected) * batch.attention_mask[..., None]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ALL)
def test_states_and_logits_stay_those_of_transformers(name):
    model = model_of(ALL[name], labels=LABELS)
    encoder = CapturingEncoder(model, states=range(5), attention_layers=(1, 2), logits=True, relations=("values",))
    for batch in batches(model):
        with torch.no_grad():
            output = encoder(batch)
            if ALL[name] in INTERFACE.values():
                model.set_attn_implementation("sdpa")
            expected = model(**inputs_of(model, batch), output_hidden_states=True)
            if ALL[name] in INTERFACE.values():
                encoder = CapturingEncoder(
                    model, states=range(5), attention_layers=(1, 2), logits=True, relations=("values",)
                )
        assert (output.logits - expected.logits).abs().max() < 1e-5
        real = batch.attention_mask[..., None]
        for found, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert found.shape[2] == 48  # factorised embeddings included
            assert ((found - wanted) * real).abs().max() < 1e-5
        assert output.queries == output.keys == ()


@pytest.mark.parametrize("name", [name for name, family in HOOKED.items() if FAMILIES[family.model_type].no_scores])
def test_scores_that_are_no_products_of_queries_and_keys_are_refused_with_the_reason(name):
    model = model_of(HOOKED[name])
    reason = FAMILIES[model.config.model_type].no_scores
    with pytest.raises(ModelError, match=rf"{reason}, so --attention_loss scores .* --attention_loss relations_kl"):
        CapturingEncoder(model, states=(0,), attention_layers=(0,), logits=False)


@pytest.mark.parametrize("name", ALL)
def test_a_student_of_the_family_gets_gradients_by_its_queries_keys_and_values(name):
    model = model_of(ALL[name]).train()
    encoder = CapturingEncoder(model, states=(), attention_layers=(2,), logits=False, relations=VECTORS)
    check_capture(encoder, sequence_length=16)
    output = encoder(batches(model)[0])
    for kind in VECTORS:
        (gradient,) = torch.autograd.grad(
            getattr(output, kind)[0].square().sum(), [model.get_input_embeddings().weight], retain_graph=True
        )
        assert gradient.abs().sum() > 0


def test_every_family_that_is_read_behind_projections_is_tested():
    assert {family.model_type for family in HOOKED.values()} == set(FAMILIES)


def test_an_architecture_without_attention_is_refused_for_predictions_too():
    model = tiny_model("fnet", labels=LABELS)
    with pytest.raises(
        ModelError, match="FNetForSequenceClassification mixes all positions of a row, padding included"
    ):
        CapturingEncoder(model, states=(), attention_layers=(), logits=True)


def test_landmarks_that_allow_one_length_alone_are_refused():
    model = tiny_model("nystromformer", num_landmarks=8, segment_means_seq_len=64)
    with pytest.raises(ModelError, match="takes rows of 64 tokens alone"):
        CapturingEncoder(model, states=(4,), attention_layers=(), logits=False)


def test_states_of_changing_lengths_are_refused_and_predictions_are_not():
    sizes = {"block_sizes": [2, 2], "n_head": 4, "d_model": 48, "d_head": 12, "d_inner": 64, "vocab_size": 64}
    model = AutoModelForSequenceClassification.from_config(FunnelConfig(**sizes)).eval()
    for states, layers in (((0,), ()), ((), (1,))):
        with pytest.raises(ModelError, match="makes its rows shorter from block to block"):
            CapturingEncoder(model, states=states, attention_layers=layers, logits=False)
    CapturingEncoder(model, states=(), attention_layers=(), logits=True)


def rows_of_the_readme() -> list[tuple[str, str, str]]:
    """Return (model_type, scores, relations) of every architecture in the README's table of teachers."""
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    section = text.partition("### Which teacher can I take?")[2].partition("###")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    return [(name, *cells[1:]) for cells in rows[1:] for name in re.findall(r"`([\w-]+)`", cells[0])]


def captures(family: Family, **request: Any) -> bool:
    """Whether a model can show what is asked for, at 32 tokens."""
    request = {"states": (), "logits": False, **request}
    try:
        encoder = CapturingEncoder(model_of(family, labels=LABELS), **request)
        check_capture(encoder, sequence_length=32)
    except ModelError:
        return False
    return True


@pytest.mark.parametrize(("model_type", "scores", "relations"), rows_of_the_readme())
def test_the_readmes_table_of_teachers_says_what_can_be_compared(model_type, scores, relations):
    if model_type in ("funnel", "fnet"):  # the two tests above
        assert (scores, relations) == ("no", "no: predictions alone" if model_type == "funnel" else "no")
        return
    family = next(family for family in ALL.values() if family.model_type == model_type)
    assert relations == "yes"
    assert captures(family, attention_layers=range(4), relations=VECTORS)
    assert captures(family, attention_layers=range(4)) == (scores == "yes")
    if scores.startswith("of layers"):
        full = full_attention_layers(model_of(family).config, 32)
        assert full
        assert captures(family, attention_layers=[layer - 1 for layer in full])


def test_the_readmes_table_has_every_family_that_is_tested():
    assert {family.model_type for family in ALL.values()} <= {model_type for model_type, *_ in rows_of_the_readme()}
