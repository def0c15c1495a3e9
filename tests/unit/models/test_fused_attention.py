"""Attention that stays fused for every head size, and masks that are made without asking the device."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import (
    bidirectional_mask_function,
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    sdpa_mask,
)

from tests.support.models import random_batch, tiny_model
from tests.support.numerics import mask_of
from tests.support.standin_gpu import stand_in_gpu
from tinybert_ds import hardware
from tinybert_ds.models import fused_attention
from tinybert_ds.models.capture import ATTENTION_NAME, CapturingEncoder
from tinybert_ds.models.fused_attention import filled_sdpa, fused_sdpa, padding_mask, sooner_in_float32, wide_sdpa


class Layer(nn.Module):
    is_causal = False


def attention(function, head, mask, **options):
    """Return output and gradients of an attention function on seeded float64 tensors of 3 heads."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 7, head, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    output, probabilities = function(Layer(), *inputs, mask, **options)
    assert probabilities is None
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return output, *torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("options", [{}, {"scaling": 0.3}])
@pytest.mark.parametrize("head", [26, 5])
@pytest.mark.parametrize("padded", [True, False])
def test_heads_that_are_filled_up_give_the_same_output_and_gradients(head, padded, options):
    mask = mask_of((7, 4), 7).bool()[:, None, None, :] if padded else None
    found, expected = (attention(function, head, mask, **options) for function in (filled_sdpa, fused_sdpa))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("head", "seen"), [(26, 32), (64, 64), (8, 8)])
def test_on_cuda_the_kernels_see_a_head_size_that_8_divides(head, seen, monkeypatch):
    sizes = []
    plain = F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        sizes.append({tensor.shape[-1] for tensor in (query, key, value)})
        return plain(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with stand_in_gpu() as device:
        inputs = [torch.empty(2, 3, 16, head, device=device, dtype=torch.bfloat16) for _ in range(3)]
        output, _ = fused_sdpa(Layer(), *inputs, None)
    assert sizes == [{seen}]
    assert output.shape == (2, 16, 3, head)


def make_mask(function, mask):
    return function(
        batch_size=2,
        q_length=6,
        kv_length=6,
        mask_function=bidirectional_mask_function,
        attention_mask=mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=True,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_the_mask_of_padding_is_that_of_transformers_in_one_row_for_all_queries():
    mask = mask_of((6, 2), 6).bool()
    expected, found = make_mask(sdpa_mask, mask), make_mask(padding_mask, mask)
    assert found.shape == (2, 1, 1, 6)
    assert torch.equal(found.expand(expected.shape), expected)
    assert make_mask(padding_mask, None) is None


def test_a_mask_of_more_than_padding_is_made_by_transformers():
    model = tiny_model()
    CapturingEncoder(model, states=(), attention_layers=(0,), logits=False)
    embeddings, mask = torch.zeros(2, 6, 4), mask_of((6, 2), 6)
    near = partial(create_bidirectional_mask, model.config, embeddings, mask)
    made = near(and_mask_function=lambda b, h, q, k: (q - k).abs() < 2)
    assert made.shape == (2, 1, 6, 6)
    assert made[0, 0].sum() == 6 + 2 * 5
    assert made[1, 0, :2, 2:].sum() == 0
    model.config.sliding_window = 2
    windowed = create_bidirectional_sliding_window_mask(model.config, embeddings, mask)
    model.config._attn_implementation = "sdpa"
    assert torch.equal(windowed, create_bidirectional_sliding_window_mask(model.config, embeddings, mask))
    assert windowed.shape == (2, 1, 6, 6)


def test_on_cuda_the_mask_is_what_is_added_to_the_scores(monkeypatch):
    monkeypatch.setattr(hardware, "CUDA", "cpu")
    found = make_mask(padding_mask, mask_of((3, 1), 3).bool()[:, [0, 1, 2, 2, 2, 2]])
    assert found[:, 0, 0].tolist() == [[0.0] * 6, [0.0] + [-float("inf")] * 5]


def test_a_batch_without_padding_gives_attention_no_mask(monkeypatch):
    seen = []
    plain = fused_attention.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, attention_mask, **options):
        seen.append(attention_mask)
        return plain(module, query, key, value, attention_mask, **options)

    monkeypatch.setattr(fused_attention, "ALL_ATTENTION_FUNCTIONS", {"sdpa": spy})
    encoder = CapturingEncoder(tiny_model(), states=(4,), attention_layers=(0,), logits=False)
    full = random_batch((9, 9))
    with torch.no_grad():
        with_mask, without = encoder(full), encoder(full._replace(padded=False))
    assert [mask is None for mask in seen] == [False] * 4 + [True] * 4
    torch.testing.assert_close(without.hidden_states[0], with_mask.hidden_states[0])


def test_a_classifier_alone_has_the_same_attention_by_its_other_name():
    model = tiny_model(labels=("bad", "good"))
    batch = random_batch((11, 16, 5))
    with torch.no_grad():
        expected = model(batch.input_ids, batch.attention_mask, batch.token_type_ids).logits
        found = CapturingEncoder(model, states=(), attention_layers=(), logits=True)(batch).logits
    assert model.config._attn_implementation == ATTENTION_NAME
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_on_a_cpu_has_gradients_by_way_of_float32(autocast, added, monkeypatch):
    precisions, plain = [], F.scaled_dot_product_attention

    def spy(query, key, value, **options):
        precisions.append({tensor.dtype for tensor in (query, key, value)})
        return plain(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 7, 26, generator=generator).bfloat16() for _ in range(3)]
    mask = mask_of((7, 4), 7).bool()[:, None, None, :]
    zeros = torch.zeros_like(mask, dtype=torch.float32)
    weights = torch.randn(2, 7, 3, 26, generator=generator)
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in exact]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype is torch.bfloat16):
            output, _ = fused_sdpa(Layer(), *inputs, zeros.to(dtype).masked_fill(~mask, -60) if added else mask)
        gradients = torch.autograd.grad((output * weights.to(output.dtype)).sum(), inputs)
        found.append((output, *gradients))
        assert all(tensor.dtype is dtype for tensor in found[-1])
    assert precisions == [{torch.float64}, {torch.float32}]
    for right, one in zip(*found, strict=True):
        assert (one.double() - right).abs().max() <= 2**-8 * right.abs().max()


@pytest.mark.parametrize(
    ("head", "length", "dtype", "asked", "wide"),
    [
        (26, 7, torch.bfloat16, True, True),
        (64, 128, torch.float16, True, True),
        (64, 129, torch.bfloat16, True, False),
        (32, 129, torch.bfloat16, True, True),
        (26, 7, torch.float32, True, False),
        (26, 7, torch.bfloat16, False, False),
    ],
)
def test_float32_is_taken_where_it_is_sooner_and_gradients_are_asked_for(head, length, dtype, asked, wide):
    query = torch.zeros(1, 1, length, head, dtype=dtype, requires_grad=asked)
    assert sooner_in_float32(query) is wide
    with torch.no_grad():
        assert not sooner_in_float32(query)


def widened(monkeypatch, *, recomputes):
    """Run `wide_sdpa` on seeded bfloat16 inputs; return its output, the inputs, and the float32 tensors in between."""
    seen = []
    plain = fused_attention.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, attention_mask, **options):
        seen.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in (query, key, value))
        return plain(module, query, key, value, attention_mask, **options)

    monkeypatch.setattr(fused_attention, "ALL_ATTENTION_FUNCTIONS", {"sdpa": spy})
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 7, 3, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    function = partial(wide_sdpa, Layer())
    if recomputes:
        function = partial(checkpoint, function, use_reentrant=False)
    output, _ = function(*(tensor.transpose(1, 2) for tensor in rows), mask_of((7, 4), 7).bool()[:, None, None, :])
    return output, rows, seen


def test_what_attention_in_float32_keeps_for_its_gradients_is_as_narrow_as_it_came(monkeypatch):
    output, rows, wide = widened(monkeypatch, recomputes=False)
    assert output.dtype is torch.bfloat16
    assert all(reference.expired() for reference in wide)
    found = torch.autograd.grad(output.float().square().sum(), rows)
    exact = [tensor.detach().float().requires_grad_() for tensor in rows]
    mask = mask_of((7, 4), 7).bool()[:, None, None, :]
    plain = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in exact), mask)
    upstream = 2 * output.detach().transpose(1, 2).float()
    for one, other in zip(found, torch.autograd.grad(plain, exact, upstream.bfloat16().float()), strict=True):
        assert torch.equal(one, other.bfloat16())


def test_attention_in_float32_is_recomputed_by_gradient_checkpointing_with_the_same_gradients(monkeypatch):
    found, expected = (
        torch.autograd.grad(output.float().square().sum(), rows)
        for output, rows, _ in (widened(monkeypatch, recomputes=recomputes) for recomputes in (True, False))
    )
    assert all(map(torch.equal, found, expected))
