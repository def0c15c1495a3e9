"""Directories in the format of the published TinyBERTs."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.support.models import published_directory, random_batch
from tinybert_ds.errors import ModelError
from tinybert_ds.models.pretrained import load_classifier, load_encoder, read_config
from tinybert_ds.models.saving import load_projections


def logits(model):
    batch = random_batch((9, 5))
    with torch.no_grad():
        return model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("zip_format", [False, True])
def test_the_encoder_is_loaded_exactly_and_the_heads_are_named(tmp_path, caplog, version, zip_format):
    _, original = published_directory(tmp_path, version=version, zip_format=zip_format)
    with caplog.at_level(logging.INFO, "tinybert_ds"):
        model = load_encoder(tmp_path, role="student")
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())
    projections = "fit_dense" if version == 1 else "fit_denses.0, fit_denses.1, fit_denses.2"
    assert f"cls.predictions, cls.seq_relationship, {projections}" in caplog.text
    assert model.config.model_type == "bert"


@pytest.mark.parametrize("version", [1, 2])
def test_the_projections_are_taken_over(tmp_path, version):
    published_directory(tmp_path, version=version)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    found = load_projections(tmp_path)
    names = {"0": "fit_dense"} if version == 1 else {str(index): f"fit_denses.{index}" for index in range(3)}
    assert found.keys() == {f"{index}.{part}" for index in names for part in ("weight", "bias")}
    for index, name in names.items():
        assert found[f"{index}.weight"].shape == (48, 24)
        assert torch.equal(found[f"{index}.weight"], state[f"{name}.weight"])
        assert torch.equal(found[f"{index}.bias"], state[f"{name}.bias"])


def test_a_missing_encoder_weight_is_refused(tmp_path):
    published_directory(tmp_path, changes={"bert.encoder.layer.1.attention.self.key.weight": None})
    with pytest.raises(ModelError, match=r"missing: encoder\.layer\.1\.attention\.self\.key\.weight"):
        load_encoder(tmp_path, role="student")


def test_the_old_names_of_layer_norm_weights_are_understood(tmp_path):
    key = "bert.embeddings.LayerNorm"
    weight, bias = torch.full((24,), 3.0), torch.full((24,), 5.0)
    changes = {f"{key}.weight": None, f"{key}.bias": None, f"{key}.gamma": weight, f"{key}.beta": bias}
    published_directory(tmp_path, changes=changes)
    norm = load_encoder(tmp_path, role="student").embeddings.LayerNorm
    assert torch.equal(norm.weight, weight)
    assert torch.equal(norm.bias, bias)


def test_a_fine_tuned_one_predicts_as_it_was_trained_with_the_pooler_relu(tmp_path):
    _, original = published_directory(tmp_path, labels=3)
    plain = load_classifier(tmp_path, label_names=("a", "b", "c"), role="student", head="required")
    assert torch.equal(logits(plain), logits(original))
    model = load_classifier(tmp_path, label_names=("a", "b", "c"), role="student", head="required", pooler_relu=True)
    batch = random_batch((9, 5))
    with torch.no_grad():
        pooled = original.bert(batch.input_ids, batch.attention_mask, batch.token_type_ids).pooler_output
        expected = original.classifier(pooled.clamp(min=0))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, logits(original))


def test_the_number_of_outputs_is_read_from_the_weights(tmp_path):
    published_directory(tmp_path, labels=3)
    assert read_config(tmp_path, role="teacher").num_labels == 3
    with pytest.raises(ModelError, match=r"has 3 outputs \(LABEL_0, LABEL_1, LABEL_2\), the task has 2"):
        load_classifier(tmp_path, label_names=("a", "b"), role="student", head="required")


def test_the_general_model_gets_a_new_head_for_a_task(tmp_path):
    published_directory(tmp_path)
    model = load_classifier(tmp_path, label_names=("a", "b"), role="student")
    assert logits(model).shape == (2, 2)
    with pytest.raises(ModelError, match="no fine-tuned classification head"):
        load_classifier(tmp_path, label_names=("a", "b"), role="student", head="required")


def test_the_sizes_of_the_config_are_taken_and_its_oddities_dropped(tmp_path):
    published_directory(tmp_path)
    config = read_config(tmp_path, role="student")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 4)
    assert not hasattr(config, "emb_size")


def test_projections_in_a_file_that_would_execute_code_are_refused(tmp_path):
    torch.save({"fit_dense.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as a file of tensors"):
        load_projections(tmp_path)


def test_a_directory_without_projections_has_none(tmp_path):
    assert load_projections(tmp_path) is None
    torch.save({"bert.embeddings.LayerNorm.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert load_projections(tmp_path) is None
