"""The form of attention in exported graphs, compared with transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from tests.support.models import tiny_model
from tinybert_ds.export.attention import MASKED, OPERATOR_FROM, served_attention
from tinybert_ds.export.convert import export_onnx
from tinybert_ds.export.runtimes import open_file

onnx = pytest.importorskip("onnx")


def padded_rows():
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2, 1:] = 0
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask}


def grouped():
    """A causal model whose keys are fewer than its queries."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 0}
    torch.manual_seed(0)
    return Qwen2ForSequenceClassification(
        Qwen2Config(num_attention_heads=4, num_key_value_heads=2, num_labels=3, initializer_range=0.4, **sizes)
    ).eval()


@pytest.mark.parametrize("make", [lambda: tiny_model(labels=("a", "b", "c")), grouped])
def test_a_model_has_its_own_logits_and_afterwards_its_own_attention(make):
    model, rows, masks = make(), padded_rows(), []
    with torch.no_grad():
        wanted = model(**rows).logits
        with served_attention(model, opset=OPERATOR_FROM - 1):
            watched = torch.Tensor.softmax

            def softmax(scores, dim):
                masks.append(scores.min())
                return watched(scores, dim)

            torch.Tensor.softmax = softmax
            try:
                found = model(**rows).logits
            finally:
                torch.Tensor.softmax = watched
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert len(masks) == model.config.num_hidden_layers
    assert MASKED - 30 < min(masks) < MASKED + 30
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_is_not_plain_stays_as_it_is():
    model = tiny_model(labels=("a", "b"))
    model.set_attn_implementation("eager")
    with served_attention(model, opset=20):
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("make", [lambda: tiny_model(labels=("a", "b", "c")), grouped])
def test_one_operator_gives_a_model_its_own_logits_and_leaves_its_attention(make):
    model, rows = make(), padded_rows()
    with torch.no_grad():
        wanted = model(**rows).logits
        with served_attention(model, opset=OPERATOR_FROM):
            found = model(**rows).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: tiny_model(labels=("a", "b", "c")), grouped])
def test_onnx_runtime_computes_the_one_operator_as_the_model_does(make, tmp_path):
    model, rows = make(), padded_rows()
    with torch.no_grad():
        wanted = model(**rows).logits.numpy()
    export_onnx(model, tuple(rows), tmp_path / "model.onnx", opset=OPERATOR_FROM)
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("Attention") == model.config.num_hidden_layers
    assert "Softmax" not in kinds
    run = open_file("onnx", tmp_path / "model.onnx", 1)
    np.testing.assert_allclose(run({name: values.numpy() for name, values in rows.items()}), wanted, atol=1e-5)
