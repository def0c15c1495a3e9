"""Weights of a frozen teacher in the order that a CPU's bfloat16 products want."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinybert_ds.models import packed_linear
from tinybert_ds.models.packed_linear import pack_linear_layers

CPU = torch.device("cpu")

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 products on this CPU"
)


@pytest.fixture(autouse=True)
def of_a_cpu_with_bfloat16(monkeypatch):
    monkeypatch.setattr(packed_linear, "multiplies_fast", lambda dtype, device: True)


class Tied(nn.Module):
    """A model whose output layer has its embeddings' weight, and which multiplies by a layer's weight itself."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(40, 24)
        self.split = nn.Linear(24, 24, bias=False)
        self.output = nn.Linear(24, 40)
        self.output.weight = self.embeddings.weight

    def forward(self, ids):
        first, second = self.split.weight.chunk(2)
        states = self.embeddings(ids)
        return self.output(torch.cat([states @ first.T, states @ second.T], dim=-1))


@needs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(), (0,), (1,), (33,), (3, 7), (2, 3, 5)])
def test_a_packed_layer_is_as_near_to_float64_as_one_that_is_not(rows, bias):
    torch.manual_seed(0)
    layer = nn.Linear(72, 40, bias=bias).bfloat16().requires_grad_(False)
    states = torch.randn(*rows, 72).bfloat16()
    expected, exact = layer(states), nn.functional.linear(*(x.double() for x in (states, layer.weight)))
    exact = exact + layer.bias.double() if bias else exact
    pack_linear_layers(layer, CPU)
    with torch.no_grad():
        for _ in range(2):  # the first call puts the weight in order
            found = layer(states)
            assert (found.dtype, found.shape) == (torch.bfloat16, expected.shape)
            error, usual = (float((x.double() - exact).abs().sum()) for x in (found, expected))
            assert error <= 1.05 * usual
    assert layer.weight.is_mkldnn


@needs_bfloat16
def test_states_that_are_not_in_the_order_of_memory_are_multiplied_too():
    layer = nn.Linear(16, 24).bfloat16().requires_grad_(False)
    states = torch.randn(16, 5, 3).bfloat16().transpose(0, 2)
    expected = layer(states)
    pack_linear_layers(layer, CPU)
    torch.testing.assert_close(layer(states), expected, rtol=0, atol=0.02)


@needs_bfloat16
def test_a_layer_keeps_its_hooks_and_a_weight_that_others_have_or_read_stays_theirs():
    model, seen = Tied().bfloat16().requires_grad_(False), []
    ids = torch.arange(12).view(2, 6)
    expected = model(ids)
    model.output.register_forward_hook(lambda layer, taken, given: seen.append(given))
    pack_linear_layers(model, CPU)
    for _ in range(2):
        torch.testing.assert_close(model(ids), expected, rtol=0, atol=0.02)
    assert len(seen) == 2
    assert isinstance(model.output, nn.Linear)
    assert model.output.weight.is_mkldnn
    assert model.output.weight.shape == (40, 24)
    assert not model.embeddings.weight.is_mkldnn
    assert not model.split.weight.is_mkldnn


def test_layers_stay_as_they_are_where_that_is_not_for_the_better(monkeypatch):
    layer = nn.Linear(4, 4)
    pack_linear_layers(layer, CPU)  # float32
    pack_linear_layers(layer.bfloat16(), torch.device("cuda"))
    monkeypatch.setattr(packed_linear, "multiplies_fast", lambda dtype, device: False)
    pack_linear_layers(layer.bfloat16(), CPU)
    assert type(layer) is nn.Linear
