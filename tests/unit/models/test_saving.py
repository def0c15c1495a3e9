"""Saved students are plain Hugging Face directories, and replaced as a whole."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from tests.support.models import ARCHITECTURES, model_directory, random_batch, tiny_model, write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from tinybert_ds.errors import ModelError
from tinybert_ds.models import saving
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.pretrained import load_classifier, load_encoder
from tinybert_ds.models.saving import copy_student, load_projections, save_student

LABELS = ("bad", "good")


@pytest.fixture
def tokenizer(tmp_path) -> BertTokenizerFast:
    write_tokenizer(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def logits(model) -> torch.Tensor:
    batch = random_batch((9, 5), pad_id=model.config.pad_token_id)
    with torch.no_grad():
        return model.eval()(batch.input_ids, batch.attention_mask).logits


@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES if name not in ("camembert", "xlm-roberta")])
def test_transformers_alone_reloads_what_was_saved_with_equal_logits(tmp_path, tokenizer, model_type):
    model = tiny_model(model_type, labels=LABELS)
    CapturingEncoder(model, states=(0,), attention_layers=(1,), logits=True)
    save_student(model, tokenizer, tmp_path / "out")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.config._attn_implementation == "sdpa"
    assert "tinybert_ds" not in (tmp_path / "out" / "config.json").read_text()
    assert torch.equal(logits(again), logits(model))
    assert again.config.id2label == {0: "bad", 1: "good"}


def test_the_tokeniser_is_saved_with_its_casing(tmp_path, tokenizer):
    save_student(tiny_model(), tokenizer, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("The Film") == ["the", "film"]


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_every_file_has_the_mode_that_the_umask_says(tmp_path, tokenizer, umask):
    before = os.umask(umask)
    try:
        save_student(tiny_model(), tokenizer, tmp_path / "out", projections={"0.weight": torch.zeros(2, 2)})
        copy_student(tmp_path / "out", tmp_path / "copy")
    finally:
        os.umask(before)
    for folder in ("out", "copy"):
        modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / folder).iterdir()}
        assert {"model.safetensors", "config.json", "projections.safetensors", "tokenizer.json"} <= modes.keys()
        assert set(modes.values()) == {0o666 & ~umask}


def test_a_tokeniser_says_nothing_of_token_types_beside_a_model_that_has_none(tmp_path, tokenizer):
    types = {}
    for model_type in ("bert", "roberta", "distilbert"):
        save_student(tiny_model(model_type), tokenizer, tmp_path / model_type)
        saved = AutoTokenizer.from_pretrained(tmp_path / model_type)
        types[model_type] = "token_type_ids" in saved("the film", "the plot")
        assert tokenizer_fingerprint(load_tokenizer(tmp_path / model_type, None)) == tokenizer_fingerprint(tokenizer)
    assert types == {"bert": True, "roberta": False, "distilbert": False}
    assert "token_type_ids" in tokenizer.model_input_names


def test_our_own_loading_takes_what_was_saved(tmp_path, tokenizer):
    model = load_classifier(model_directory(tmp_path / "in"), label_names=LABELS, role="student")
    save_student(model, tokenizer, tmp_path / "out")
    again = load_classifier(tmp_path / "out", label_names=LABELS, role="student", head="required")
    assert torch.equal(logits(again), logits(model))
    assert load_encoder(tmp_path / "out", role="teacher").config.num_hidden_layers == 4


def test_given_weights_are_written_in_place_of_the_models_own_and_decide_the_dtype(tmp_path, tokenizer):
    master = tiny_model(seed=1)
    model = tiny_model(seed=2).to(torch.bfloat16)
    save_student(model, tokenizer, tmp_path / "out", state_dict=master.state_dict())
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), master.parameters(), strict=True))
    assert model.dtype == torch.bfloat16


def test_other_files_of_the_directory_stay_and_no_scratch_is_left(tmp_path, tokenizer):
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    (out / "metrics.jsonl").write_text("{}\n")
    save_student(tiny_model(), tokenizer, out, projections={"0.weight": torch.ones(2, 2)})
    expected = {
        "config.json",
        "model.safetensors",
        "projections.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in out.iterdir()} == expected | {"checkpoints", "metrics.jsonl"}


def interrupted_at(monkeypatch, rename: int) -> None:
    """Let the process 'die' at the given rename (from 0)."""
    seen = 0
    original = os.replace

    def replace(source, target):
        nonlocal seen
        seen += 1
        if seen > rename:
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(saving.os, "replace", replace)


def test_new_weights_of_the_same_model_are_one_rename_and_the_old_ones_stay_until_then(
    tmp_path, tokenizer, monkeypatch
):
    out = tmp_path / "out"
    old, new = tiny_model(seed=1), tiny_model(seed=2)
    save_student(old, tokenizer, out)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            save_student(new, tokenizer, out)
    assert torch.equal(AutoModel.from_pretrained(out).get_input_embeddings().weight, old.get_input_embeddings().weight)
    interrupted_at(monkeypatch, 1)
    save_student(new, tokenizer, out)
    assert torch.equal(AutoModel.from_pretrained(out).get_input_embeddings().weight, new.get_input_embeddings().weight)


@pytest.mark.parametrize("rename", [0, 1, 2, 3])
def test_a_save_of_another_model_that_dies_half_way_leaves_nothing_that_loads(tmp_path, tokenizer, monkeypatch, rename):
    out = tmp_path / "out"
    save_student(tiny_model(seed=1), tokenizer, out, projections={"0.weight": torch.ones(48, 48)})
    narrow = tiny_model(seed=2, hidden_size=24, intermediate_size=32)
    arguments = (narrow, tokenizer, out)
    with monkeypatch.context() as patch:
        interrupted_at(patch, rename)
        if rename < 3:
            with pytest.raises(KeyboardInterrupt):
                save_student(*arguments, projections={"0.weight": torch.ones(48, 24)})
            with pytest.raises(ModelError, match=r"has no config\.json"):
                load_encoder(out, role="student")
    save_student(*arguments, projections={"0.weight": torch.ones(48, 24)})
    assert load_encoder(out, role="student").config.hidden_size == 24
    assert load_projections(out)["0.weight"].shape == (48, 24)


def test_changed_projections_and_weights_of_one_model_come_together(tmp_path, tokenizer, monkeypatch):
    out = tmp_path / "out"
    save_student(tiny_model(seed=1), tokenizer, out, projections={"0.weight": torch.zeros(2, 2)})
    with monkeypatch.context() as patch:
        interrupted_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            save_student(tiny_model(seed=2), tokenizer, out, projections={"0.weight": torch.ones(2, 2)})
    assert not (out / "config.json").exists()
    save_student(tiny_model(seed=2), tokenizer, out, projections={"0.weight": torch.ones(2, 2)})
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 48


def test_projections_come_back_in_float32(tmp_path, tokenizer):
    state = {"0.weight": torch.randn(4, 3).bfloat16(), "0.bias": torch.randn(4)}
    save_student(tiny_model(), tokenizer, tmp_path, projections=state)
    found = load_projections(tmp_path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value.float()) for name, value in state.items())


def test_damaged_projections_are_refused(tmp_path):
    (tmp_path / "projections.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"projections\.safetensors cannot be read"):
        load_projections(tmp_path)


def test_a_model_with_the_pooler_relu_is_saved_with_a_warning(tmp_path, tokenizer, caplog):
    directory: Path = model_directory(tmp_path / "in", labels=LABELS)
    model = load_classifier(directory, label_names=LABELS, role="student", pooler_relu=True)
    with caplog.at_level(logging.WARNING, "tinybert_ds"):
        save_student(model, tokenizer, tmp_path / "out")
    assert "pooler_relu" in caplog.text
    again = load_classifier(tmp_path / "out", label_names=LABELS, role="student", head="required")
    assert torch.equal(logits(again), logits(model))
