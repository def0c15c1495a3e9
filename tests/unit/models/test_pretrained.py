"""Loading is strict: what is missing, left over or unreadable is refused by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertForMaskedLM

from tests.support.models import config_directory, model_directory, random_batch, tiny_model
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.pretrained import has_weights, load_classifier, load_encoder, read_config, weights_bytes

LABELS = ("negative", "positive")


def change_weights(directory: Path, change) -> None:
    file = directory / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def change_config(directory: Path, **values) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def last_state(model):
    with torch.no_grad():
        return model.base_model(**inputs()).last_hidden_state


def inputs():
    batch = random_batch((9, 5))
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def test_the_size_of_a_model_is_that_of_the_weights_that_are_loaded(tmp_path):
    old = tmp_path / "old" / "0_Transformer"
    files = {
        tmp_path / "student": {"model.safetensors": 5, "pytorch_model.bin": 6, "projections.safetensors": 7},
        tmp_path / "sharded": {
            "model.safetensors.index.json": 1,
            "model-00001.safetensors": 2,
            "model-2.safetensors": 4,
        },
        old: {"config.json": 1, "pytorch_model.bin": 6},
        tmp_path / "none": {"projections.safetensors": 7},
    }
    for folder, sizes in files.items():
        folder.mkdir(parents=True)
        for name, size in sizes.items():
            (folder / name).write_bytes(bytes(size))
    assert {name: weights_bytes(tmp_path / name) for name in ("student", "sharded", "old", "none")} == {
        "student": 5,
        "sharded": 6,
        "old": 6,
        "none": 0,
    }


def test_an_encoder_is_loaded_in_float32_and_eval_mode_with_its_own_weights(tmp_path):
    model_directory(tmp_path, seed=3)
    model = load_encoder(tmp_path, role="teacher")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(last_state(model), last_state(tiny_model(seed=3)))


def test_half_precision_weights_become_float32(tmp_path):
    tiny_model().half().save_pretrained(tmp_path)
    assert load_encoder(tmp_path, role="teacher").dtype == torch.float32


def test_weights_in_a_bin_file_are_loaded(tmp_path):
    model = tiny_model(seed=3)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(last_state(load_encoder(tmp_path, role="teacher")), last_state(model))


class Payload:
    """Executes code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_a_bin_file_that_would_execute_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    torch.save({"weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(tmp_path, role="teacher")
    assert not (tmp_path / "executed").exists()


def test_a_missing_encoder_weight_is_refused_by_name(tmp_path):
    model_directory(tmp_path)
    change_weights(tmp_path, lambda state: state.pop("encoder.layer.2.output.dense.weight"))
    with pytest.raises(ModelError, match=r"1 weights of the encoder are missing: encoder\.layer\.2\.output\.dense"):
        load_encoder(tmp_path, role="teacher")
    with pytest.raises(ModelError, match=r"1 weights of the encoder are missing: bert\.encoder\.layer\.2\.output"):
        load_classifier(tmp_path, label_names=LABELS, role="teacher")


def test_a_config_deeper_than_its_weights_is_refused(tmp_path):
    model_directory(tmp_path)
    change_config(tmp_path, num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"16 weights of the encoder are missing: .* and 4 more"):
        load_encoder(tmp_path, role="teacher")


def test_a_config_shallower_than_its_weights_is_refused(tmp_path):
    model_directory(tmp_path)
    change_config(tmp_path, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"16 weights have no place in its config's architecture: encoder\.layer\.3"):
        load_encoder(tmp_path, role="teacher")
    with pytest.raises(ModelError, match="16 weights have no place"):
        load_classifier(tmp_path, label_names=LABELS, role="teacher")


def test_weights_of_another_shape_are_refused_with_both_shapes(tmp_path):
    model_directory(tmp_path)
    change_config(tmp_path, vocab_size=200)
    with pytest.raises(
        ModelError, match=r"word_embeddings\.weight has shape \[\d+, 48\], its config asks for \[200, 48\]"
    ):
        load_encoder(tmp_path, role="teacher")


def test_heads_that_an_encoder_has_no_use_for_are_named_in_the_log(tmp_path, caplog):
    BertForMaskedLM(tiny_model().config).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "tinybert_ds"):
        load_encoder(tmp_path, role="teacher")
    assert "left out what BertModel has no use for: cls.predictions" in caplog.text
    assert "new pooler (pooler.dense.bias, pooler.dense.weight)" in caplog.text


def test_a_new_pooler_comes_from_the_seed(tmp_path):
    BertForMaskedLM(tiny_model().config).save_pretrained(tmp_path)
    state = torch.random.get_rng_state()
    poolers = [load_encoder(tmp_path, role="student", seed=seed).pooler.dense.weight for seed in (1, 1, 2)]
    assert torch.equal(poolers[0], poolers[1])
    assert not torch.equal(poolers[0], poolers[2])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "electra", "mobilebert", "albert"])
def test_an_encoder_gets_a_new_head_that_the_log_names(tmp_path, caplog, model_type):
    model_directory(tmp_path, model_type=model_type)
    with caplog.at_level(logging.INFO, "tinybert_ds"):
        model = load_classifier(tmp_path, label_names=LABELS, role="student")
    assert "new classification head" in caplog.text
    assert "classifier" in caplog.text
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.problem_type == "single_label_classification"
    assert model(**inputs()).logits.shape == (2, 2)


def test_the_fine_tuned_head_of_the_same_task_is_taken(tmp_path, caplog):
    model_directory(tmp_path, labels=LABELS, seed=4)
    for head in ("any", "required"):
        with caplog.at_level(logging.INFO, "tinybert_ds"):
            model = load_classifier(tmp_path, label_names=LABELS, role="student", head=head)
        assert torch.equal(model.classifier.weight, tiny_model(labels=LABELS, seed=4).classifier.weight)
    assert not caplog.text


def test_a_head_of_several_layers_is_replaced_whole(tmp_path):
    model_directory(tmp_path, model_type="roberta", labels=("a", "b", "c"))
    head = load_classifier(tmp_path, label_names=LABELS, role="student").classifier
    assert head.out_proj.weight.shape == (2, 48)
    assert head.dense.weight.std() < 0.04  # 0.02 is the architecture's own; the directory's head is four times that
    assert head.dense.bias.abs().max() == 0


def test_a_regression_head_is_taken_whatever_its_output_is_called(tmp_path):
    model_directory(tmp_path, labels=("LABEL_0",), seed=4)
    model = load_classifier(tmp_path, label_names=None, role="student")
    assert torch.equal(model.classifier.weight, tiny_model(labels=("x",), seed=4).classifier.weight)


@pytest.mark.parametrize("labels", [("positive", "negative"), ("bad", "good", "mixed"), ("LABEL_0", "LABEL_1")])
def test_a_head_for_other_labels_is_replaced_and_the_log_says_so(tmp_path, caplog, labels):
    model_directory(tmp_path, labels=labels, seed=4)
    with caplog.at_level(logging.INFO, "tinybert_ds"):
        models = [load_classifier(tmp_path, label_names=LABELS, role="student", seed=seed) for seed in (1, 1, 2)]
    assert "new classification head (classifier.bias, classifier.weight)" in caplog.text.replace(
        "classifier.weight, classifier.bias", "classifier.bias, classifier.weight"
    )
    weights = [model.classifier.weight for model in models]
    assert weights[0].shape == (2, 48)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std() < 0.05  # 0.02 is BERT's own; the directory's head is four times that
    assert torch.equal(last_state(models[0]), last_state(tiny_model(labels=labels, seed=4)))


def test_regression_has_one_output(tmp_path):
    model = load_classifier(model_directory(tmp_path), label_names=None, role="student")
    assert model(**inputs()).logits.shape == (2, 1)
    assert model.config.problem_type == "regression"


def test_a_required_head_keeps_its_own_names(tmp_path):
    model_directory(tmp_path, labels=("positive", "negative"))
    model = load_classifier(tmp_path, label_names=LABELS, role="teacher", head="required")
    assert model.config.id2label == {0: "positive", 1: "negative"}


def test_a_required_head_that_is_missing_or_of_another_size_is_refused(tmp_path):
    plain, other = model_directory(tmp_path / "plain"), model_directory(tmp_path / "other", labels=("a", "b", "c"))
    with pytest.raises(ModelError, match=r"no fine-tuned classification head .*classifier.*finetune_teacher"):
        load_classifier(plain, label_names=LABELS, role="teacher", head="required")
    with pytest.raises(ModelError, match=r"has 3 outputs \(a, b, c\), the task has 2"):
        load_classifier(other, label_names=LABELS, role="teacher", head="required")


def test_the_pooler_relu_is_put_in_and_stays_with_the_saved_model(tmp_path):
    model_directory(tmp_path / "plain", labels=LABELS, seed=4)
    plain = load_classifier(tmp_path / "plain", label_names=LABELS, role="student")
    model = load_classifier(tmp_path / "plain", label_names=LABELS, role="student", pooler_relu=True)
    pooled = model.bert(**inputs()).pooler_output
    assert torch.equal(pooled, plain.bert(**inputs()).pooler_output.relu())
    assert (pooled == 0).any()
    model.save_pretrained(tmp_path / "saved")
    again = load_classifier(tmp_path / "saved", label_names=LABELS, role="student")
    assert isinstance(again.bert.pooler.activation, nn.Sequential)
    assert torch.equal(again(**inputs()).logits, model(**inputs()).logits)


def test_the_pooler_relu_is_refused_for_another_architecture(tmp_path):
    model_directory(tmp_path, model_type="distilbert", labels=LABELS)
    with pytest.raises(ModelError, match="leave the flag out"):
        load_classifier(tmp_path, label_names=LABELS, role="student", pooler_relu=True)


def test_a_loaded_model_can_be_captured(tmp_path):
    model = load_encoder(model_directory(tmp_path), role="teacher")
    output = CapturingEncoder(model, states=(0, 4), attention_layers=(3,), logits=False)(random_batch((6, 3)))
    assert output.queries[0].shape == (2, 4, 6, 12)


def test_a_path_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"teacher .*nowhere does not exist"):
        load_encoder(tmp_path / "nowhere", role="teacher")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_encoder(tmp_path, role="teacher")
    config_directory(tmp_path)
    assert not has_weights(tmp_path)
    with pytest.raises(ModelError, match=r"has no weights; give a directory with one of model\.safetensors"):
        load_encoder(tmp_path, role="teacher")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ('{"model_type": "bertt"}', "model_type 'bertt', which the installed transformers does not know"),
        ('{"model_type": "own", "auto_map": {}}', "asks for remote code, which is never run"),
        ('{"hidden_size": 4}', "has no model_type"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "not a valid model config"),
        ('{"model_type": "t5"}', "is not a text encoder"),
        ('{"model_type": "vit"}', "is not a text encoder"),
    ],
)
def test_a_config_that_is_no_encoders_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path, role="student")


def test_damaged_weights_are_refused_with_the_directory(tmp_path):
    model_directory(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"teacher {tmp_path} .* cannot be loaded"):
        load_encoder(tmp_path, role="teacher")
