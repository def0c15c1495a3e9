"""Whatever libraries raise about a user's model becomes one message; lack of memory stays what it is."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.support.families import family_directory
from tests.support.models import config_directory, model_directory, tiny_config
from tinybert_ds.errors import ConfigError, ModelError, UserError
from tinybert_ds.models.build import Head, build_student, check_pair
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.pretrained import load_encoder, read_config
from tinybert_ds.models.probe import check_capture
from tinybert_ds.models.student import freeze_unused


@pytest.mark.parametrize("error", [Exception("odd"), KeyError("odd"), RecursionError("odd"), AttributeError("odd")])
def test_any_error_becomes_a_message_with_what_failed_and_what_to_do(error):
    message = rf"reading x: {type(error).__name__}: '?odd'?; fetch it"
    with pytest.raises(ModelError, match=message), foreign_code("reading x", "fetch it"):
        raise error


def test_long_and_many_lined_words_of_a_library_are_cut():
    with pytest.raises(ModelError) as caught, foreign_code("reading x"):
        raise ValueError("\n\n" + "a" * 5000 + "\nb")
    assert len(str(caught.value)) < 400
    assert "b" not in str(caught.value).removeprefix("reading x: ValueError")


@pytest.mark.parametrize("error", [ConfigError("ours"), MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt()])
def test_our_own_errors_and_lack_of_memory_pass(error):
    with pytest.raises(type(error)) as caught, foreign_code("reading x"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": ["bad", "good"]}, "id2label is a list; write an object"),
        ({"id2label": {"1": "bad", "2": "good"}}, "id2label has the keys 1, 2; name the outputs 0 to 1"),
        ({"hidden_act": "gelo"}, r"hidden_act is 'gelo' \(did you mean gelu\?\)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be at least 1"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan; it must be from 0 to 1"),
        ({"attention_probs_dropout_prob": 1.5}, "attention_probs_dropout_prob is 1.5"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is NaN"),
        ({"hidden_act": 3}, "not a valid model config"),
        ({"vocab_size": "many"}, "not a valid model config"),
    ],
)
def test_values_that_no_model_can_be_made_of_are_refused_when_the_config_is_read(tmp_path, changes, message):
    config_directory(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path, role="student")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", "\x00", '{"a": "\udcff"}'])
def test_a_config_that_no_parser_takes_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match="is not JSON"):
        read_config(tmp_path, role="student")


SPECIAL = {
    "fnet": {"tpu_short_seq_length": 64},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 64},
    "squeezebert": {"embedding_size": 24},
    "splinter": {},
    "canine": {},
    "convbert": {},
    "big_bird": {},
    "xlm": {},
    "funnel": {"num_hidden_layers": None, "hidden_size": None},
    "bert": {"position_embedding_type": "relative_key"},
    "gpt2": {},
    "t5": {},
    "roformer": {},
    "longformer": {"attention_window": 8},
    "reformer": {},
    "modernbert": {"global_attn_every_n_layers": 0},
    "albert": {"num_hidden_groups": 0},
    "deberta-v2": {},
    "luke": {},
}


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("model_type", SPECIAL)
def test_a_student_of_any_family_works_or_is_refused_with_a_message(tmp_path, model_type, attention):
    values = {"model_type": model_type, **SPECIAL[model_type]}
    base = tiny_config(num_hidden_layers=2, hidden_size=24, intermediate_size=32).to_dict()
    base |= {"torch_dtype": None, "architectures": None}
    content = {key: value for key, value in {**base, **values}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with suppress(UserError):  # anything else is a traceback
        config = read_config(tmp_path, role="student")
        layer_map = check_pair(tiny_config(), config, layer_map="uniform", attention=attention)
        for head in (None, Head(("a", "b"))):
            model = build_student(tmp_path, weights="random", head=head, seed=0)
            layers = range(len(layer_map) - 1) if attention else ()
            encoder = CapturingEncoder(model, states=range(3), attention_layers=layers, logits=head is not None)
            check_capture(encoder, sequence_length=16)
            freeze_unused(encoder)


@pytest.mark.parametrize("family", ["mpnet", "longformer", "deberta-v2"])
def test_refusals_of_attention_scores_offer_to_leave_them_out_and_that_works(tmp_path, family):
    model = load_encoder(family_directory(tmp_path, family), role="teacher")
    with pytest.raises(ModelError, match="--attention_weight 0"):
        CapturingEncoder(model, states=(0, 4), attention_layers=(1, 3), logits=False)
    check_capture(CapturingEncoder(model, states=(0, 4), attention_layers=(), logits=False), sequence_length=32)


def test_wrapped_weights_are_refused_with_the_command_that_unwraps_them(tmp_path):
    directory = wrapped(tmp_path, "state_dict")
    with pytest.raises(ModelError, match=r"keeps its weights under the key 'state_dict'; unwrap them: python -c"):
        load_encoder(directory, role="teacher")


def wrapped(directory: Path, key: str) -> Path:
    model = load_encoder(model_directory(directory), role="teacher")
    (directory / "model.safetensors").unlink()
    torch.save({key: model.state_dict(), "epoch": 3}, directory / "pytorch_model.bin")
    return directory


def test_weights_under_another_name_are_refused_with_the_name_that_is_looked_for(tmp_path):
    model_directory(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    message = r"It has model\.fp16\.safetensors: if .* holds its weights, rename it to model\.safetensors"
    with pytest.raises(ModelError, match=message):
        load_encoder(tmp_path, role="teacher")


def test_non_finite_weights_are_refused_by_name(tmp_path):
    model = load_encoder(model_directory(tmp_path), role="teacher")
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 weights of teacher .* not finite: embeddings\.word_embeddings\.weight"):
        load_encoder(tmp_path, role="teacher")
