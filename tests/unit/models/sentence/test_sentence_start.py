"""The closed form of a student's projection to its teacher's vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.models import random_batch, tiny_model
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.sentence.head import pool
from tinybert_ds.models.sentence.start import fit_projection


@pytest.fixture
def encoder():
    return CapturingEncoder(tiny_model(hidden_size=8), states=[4], attention_layers=(), logits=False)


def blocks(tmp_path, count=3):
    return Blocks([random_batch([9, 5, 12, 7] * 4, seed=number) for number in range(count)], tmp_path)


def pooled(encoder, batch):
    with torch.no_grad():
        return pool(encoder(batch).hidden_states[0], batch.attention_mask, ("mean",))


def test_vectors_that_are_a_linear_map_of_the_students_are_met(encoder, tmp_path):
    wanted, bias = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(5.0)
    dense, share = fit_projection(
        encoder, ("mean",), lambda batch: pooled(encoder, batch) @ wanted.T + bias, blocks(tmp_path), ridge=1e-12
    )
    assert share == pytest.approx(1, abs=1e-6)
    new = pooled(encoder, random_batch([6, 30], seed=9))
    torch.testing.assert_close(new @ dense.weight.T + dense.bias, new @ wanted.T + bias, atol=1e-3, rtol=1e-3)


def test_it_is_the_ridge_regression_that_numpy_finds(encoder, tmp_path):
    text, ridge = blocks(tmp_path), 1e-2
    generator = torch.Generator().manual_seed(1)
    targets = [torch.randn(16, 3, generator=generator) for _ in text.batches]
    numbers = {id(batch.sample_ids): n for n, batch in enumerate(text.batches)}
    dense, share = fit_projection(encoder, ("mean",), lambda b: targets[numbers[id(b.sample_ids)]], text, ridge=ridge)
    x = torch.cat([pooled(encoder, batch) for batch in text.batches]).double().numpy()
    y = torch.cat(targets).double().numpy()
    centred, wanted = x - x.mean(0), y - y.mean(0)
    held = np.sqrt(ridge * centred.var(0).mean() * len(x)) * np.eye(8)  # rows that ask for weights of 0
    solution, *_ = np.linalg.lstsq(np.vstack([centred, held]), np.vstack([wanted, np.zeros((8, 3))]), rcond=None)
    np.testing.assert_allclose(dense.weight.T, solution, atol=1e-4)
    np.testing.assert_allclose(dense.bias, y.mean(0) - x.mean(0) @ solution, atol=1e-4)
    left = wanted - centred @ solution
    assert share == pytest.approx(1 - (left**2).sum() / (wanted**2).sum(), abs=1e-6)
