"""Old layouts are found, adapters and files that were not fetched whole refused with the command that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.models import model_directory, tiny_model
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ModelError
from tinybert_ds.models.build import build_student
from tinybert_ds.models.directory import model_files
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import has_weights, load_classifier, load_encoder, read_config

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 133466304\n"


def old_layout(root: Path, folder: str = "0_Transformer", modules: object = None) -> Path:
    """Write a model as sentence-transformers did before version 2; return its root."""
    model_directory(root / folder, seed=3)
    (root / "1_Pooling").mkdir()
    (root / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 48}')
    if modules is not None:
        (root / "modules.json").write_text(json.dumps(modules))
    return root


@pytest.mark.parametrize("folder", ["0_Transformer", "0_BERT", "own name"])
def test_the_old_layout_of_sentence_transformers_is_read_from_its_root(tmp_path, folder):
    modules = [{"idx": 0, "path": folder}, {"idx": 1, "path": "1_Pooling"}] if folder == "own name" else None
    root = old_layout(tmp_path / "root", folder, modules)
    plain = root / folder
    assert model_files(root) == plain
    assert has_weights(root)
    assert read_config(root, role="teacher").hidden_size == 48
    assert model_fingerprint(root) == model_fingerprint(plain)
    assert load_tokenizer(root, None)("the film").input_ids == load_tokenizer(plain, None)("the film").input_ids
    expected = tiny_model(seed=3).get_input_embeddings().weight
    student = build_student(root, weights="load", head=None, seed=0)
    classifier = load_classifier(root, label_names=("a", "b"), role="teacher")
    for model in (load_encoder(root, role="teacher"), student, classifier):
        assert torch.equal(model.get_input_embeddings().weight, expected)


@pytest.mark.parametrize("modules", [[{"idx": 0, "path": ""}], {}, [], [{"path": "../elsewhere"}], [{"path": 3}], None])
def test_a_directory_with_its_own_config_is_what_it_is(tmp_path, modules):
    model_directory(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert model_files(tmp_path) == tmp_path
    (tmp_path / "config.json").unlink()
    assert model_files(tmp_path) == tmp_path
    assert model_files(tmp_path / "config.json") == tmp_path / "config.json"


@pytest.mark.parametrize(
    ("task_type", "name"),
    [("SEQ_CLS", "AutoPeftModelForSequenceClassification"), (None, "AutoPeftModel"), (["x"], "AutoPeftModel")],
)
def test_an_adapter_is_refused_with_the_command_that_merges_it(tmp_path, task_type, name):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": task_type}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    message = rf"PEFT adapter.*from peft import {name} as M; M\.from_pretrained\('{tmp_path}'\)\.merge_and_unload\(\)"
    for load in (
        lambda: read_config(tmp_path, role="teacher"),
        lambda: load_tokenizer(tmp_path, None),
        lambda: build_student(tmp_path, weights="load", head=None, seed=0),
    ):
        with pytest.raises(ModelError, match=message):
            load()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(("content", "message"), [(POINTER, "is a pointer of Git LFS.*lfs pull"), ("", "is empty")])
def test_a_file_that_was_not_fetched_is_refused_with_how_to_fetch_it(tmp_path, name, content, message):
    model_directory(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=f"{name} {message}"):
        load_encoder(tmp_path, role="teacher")


def test_a_published_bin_that_was_not_fetched_is_refused(tmp_path):
    model = model_directory(tmp_path)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    (model / "pytorch_model.bin").write_text(POINTER)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pointer of Git LFS"):
        load_encoder(model, role="teacher")
