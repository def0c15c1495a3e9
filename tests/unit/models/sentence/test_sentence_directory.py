"""Directories of sentence-transformers: what that library writes is read, and what is written it opens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers import models as library
from transformers import AutoConfig, AutoTokenizer

from tests.support.families import family_directory
from tests.support.models import model_directory, tiny_model
from tests.support.sentences import random_texts, sentence_directory
from tinybert_ds.data.task_batches import TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.pretrained import load_encoder
from tinybert_ds.models.sentence.directory import read_modules, save_sentence_encoder
from tinybert_ds.models.sentence.head import SentenceEncoder, SentenceHead
from tinybert_ds.models.sentence.modules import POOLINGS, Dense, Normalise, SentenceModules
from tinybert_ds.stages.sentence_encoders import length_limit

TEXTS = [*random_texts(5), "", "the " * 50]


def vectors(directory, texts=TEXTS):
    """Return the vectors that this program makes of texts with a directory."""
    model = load_encoder(directory, role="model")
    modules = read_modules(directory, model.config.hidden_size)
    encoder = CapturingEncoder(model, states=[4], attention_layers=(), logits=False)
    prompt = modules.prompts.get(modules.default_prompt, "")
    examples = Examples(directory, ([prompt + text for text in texts],), None)
    length = modules.max_seq_length or 64
    rows = encode(examples, load_tokenizer(directory, None), length)
    source = TaskSource(
        rows, global_batch_size=7, max_seq_length=length, seed=0, padding="valid", pad_id=0, shuffle=False
    )
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    with torch.no_grad():
        made = SentenceEncoder(encoder, SentenceHead(modules)).eval()(batch).logits
    return made[batch.sample_ids.argsort()].numpy()


def library_vectors(directory, texts=TEXTS):
    return SentenceTransformer(str(directory), device="cpu").encode(texts, batch_size=3)


@pytest.mark.parametrize("pooling", [*((name,) for name in POOLINGS), ("cls", "mean"), ("mean", "cls")])
def test_the_library_opens_what_is_written_and_makes_the_same_vectors(tmp_path, pooling):
    directory = sentence_directory(tmp_path, pooling=pooling, width=20)
    ours, theirs = vectors(directory), library_vectors(directory)
    assert ours.shape == (len(TEXTS), 20)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_prompts_and_the_length_that_texts_are_cut_to_are_those_of_the_directory(tmp_path):
    prompts = {"query": "we saw : ", "document": "a house : "}
    directory = sentence_directory(tmp_path, prompts=prompts, default_prompt="query", max_seq_length=12)
    np.testing.assert_allclose(vectors(directory), library_vectors(directory), atol=1e-5)
    plain = SentenceTransformer(str(directory), device="cpu")
    assert plain.max_seq_length == 12
    np.testing.assert_allclose(
        plain.encode(["good"], prompt_name="document"), plain.encode(["a house : good"], prompt=""), atol=1e-6
    )


@pytest.mark.parametrize("activation", ["Tanh", "GELU", "Identity"])
def test_what_the_library_writes_is_read(tmp_path, activation):
    source = model_directory(tmp_path / "model")
    transformer = library.Transformer(str(source), max_seq_length=24)
    pooling = library.Pooling(48, pooling_mode="mean")
    torch.manual_seed(0)
    dense = library.Dense(48, 16, bias=activation != "GELU", activation_function=getattr(torch.nn, activation)())
    model = SentenceTransformer(modules=[transformer, pooling, dense, library.Normalize()], device="cpu")
    model.save(str(tmp_path / "written"))
    modules = read_modules(tmp_path / "written", 48)
    assert modules.pooling == ("mean",)
    assert modules.normalised
    assert modules.width(48) == 16
    written = tmp_path / "written"
    if modules.max_seq_length is None:  # newer versions leave it to the tokeniser's files
        assert load_tokenizer(written, None).model_max_length == 24
        (written / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    np.testing.assert_allclose(vectors(written), model.encode(TEXTS), atol=1e-5)


def test_a_directory_without_modules_is_the_mean_of_its_states_as_for_the_library(tmp_path):
    directory = model_directory(tmp_path)
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')  # nobody's
    np.testing.assert_allclose(vectors(directory), library_vectors(directory), atol=1e-5)


@pytest.mark.parametrize(("family", "longest"), [("xlm-roberta", 64), ("mpnet", 64), ("bert", 64)])
def test_a_directory_that_states_no_length_has_that_of_its_positions(tmp_path, family, longest):
    directory = family_directory(tmp_path, family)
    assert AutoTokenizer.from_pretrained(directory).model_max_length > 66
    config, tokenizer = AutoConfig.from_pretrained(directory), load_tokenizer(directory, None)
    assert length_limit(config, tokenizer) == longest
    assert config.max_position_embeddings == (64 if family == "bert" else 66)
    for stated, taken in ((20, 20), (65, longest)):
        tokenizer.model_max_length = stated
        assert length_limit(config, tokenizer) == taken


def test_an_old_layout_with_switches_and_pickled_weights_is_read(tmp_path):
    transformer = model_directory(tmp_path / "0_Transformer")
    (transformer / "sentence_roberta_config.json").write_text('{"max_seq_length": 17, "do_lower_case": true}')
    (tmp_path / "1_Pooling").mkdir()
    switches = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **switches}))
    (tmp_path / "2_Dense").mkdir()
    config = {
        "in_features": 96,
        "out_features": 5,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config))
    state = {"linear.weight": torch.randn(5, 96), "linear.bias": torch.randn(5)}
    torch.save(state, tmp_path / "2_Dense" / "pytorch_model.bin")
    names = ["Transformer", "Pooling", "Dense"]
    listing = [
        {"idx": n, "name": str(n), "path": f"{n}_{name}", "type": f"sentence_transformers.models.{name}"}
        for n, name in enumerate(names)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listing))
    modules = read_modules(tmp_path, 48)
    assert (modules.pooling, modules.max_seq_length, modules.lower_case) == (("cls", "mean"), 17, True)
    (dense,) = modules.layers
    assert torch.equal(dense.weight, state["linear.weight"])
    assert dense.activation == "Tanh"


def changed(file, **values):
    """Change values of a JSON file."""
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values} if isinstance(content, dict) else values["listing"](content)))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "median"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 47}, "47"),
        ("2_Dense/config.json", {"activation_function": "my.module.Swish"}, "Swish"),
        ("2_Dense/config.json", {"out_features": 21}, "21"),
        ("2_Dense/config.json", {"bias": False}, "bias"),
        ("2_Dense/config.json", {"use_residual": True}, "residual"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "many"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "query"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, "prompts"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "CrossEncoder"),
        ("modules.json", {"listing": lambda items: items[1:]}, "begins with Pooling"),
        (
            "modules.json",
            {"listing": lambda items: [*items, {**items[0], "type": "models.WordWeights"}]},
            "WordWeights",
        ),
        ("modules.json", {"listing": lambda items: [{**items[0], "path": "../up"}, *items[1:]]}, "../up"),
        ("modules.json", {"listing": lambda items: [1, 2]}, "modules.json"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_file(tmp_path, file, values, said):
    directory = sentence_directory(tmp_path, width=20)
    changed(directory / file, **values)
    with pytest.raises(ModelError) as refusal:
        read_modules(directory, 48)
    assert said in str(refusal.value)
    assert file.partition("/")[0] in str(refusal.value)


def test_dense_weights_that_are_no_numbers_are_refused(tmp_path):
    directory = sentence_directory(tmp_path, width=20)
    modules = SentenceModules(("mean",), (Dense(torch.full((20, 48), torch.nan), None), Normalise()))
    save_sentence_encoder(tiny_model(), load_tokenizer(directory, None), directory, modules)
    with pytest.raises(ModelError, match="no finite numbers"):
        read_modules(directory, 48)


def test_a_set_that_is_being_written_does_not_load(tmp_path, monkeypatch):
    directory = sentence_directory(tmp_path, width=20)

    def fail(*_args, **_kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr("tinybert_ds.models.sentence.directory.save_student", fail)
    with pytest.raises(OSError, match="full"):
        sentence_directory(directory, width=20, seed=1)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_encoder(directory, role="model")
