"""bfloat16 on a CPU without instructions for it: the same numbers, by float32 products."""

import pytest
import torch
import torch.nn.functional as F

from tests.support.models import random_batch, tiny_model
from tinybert_ds.models import wide_products
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.wide_products import WideProducts


@pytest.mark.parametrize("rows", [1, 64])
def test_products_and_gradients_are_those_of_exact_sums_rounded_once(rows):
    torch.manual_seed(0)
    inputs = torch.randn(rows, 96).bfloat16().requires_grad_()
    weight = torch.randn(40, 96).bfloat16().requires_grad_()
    with WideProducts():
        output = F.linear(inputs, weight)
        assert torch.equal(F.linear(input=inputs, weight=weight), output)
    assert output.dtype is torch.bfloat16
    exact = (inputs.double() @ weight.double().T).detach()
    assert (output.double() - exact).abs().max() <= 2**-8 * exact.abs().max()
    output.backward(torch.ones_like(output))
    assert inputs.grad.dtype is weight.grad.dtype is torch.bfloat16
    torch.testing.assert_close(weight.grad.double()[0], inputs.detach().double().sum(0), rtol=2**-7, atol=2**-6)


def test_other_dtypes_and_other_functions_are_left_alone():
    inputs = torch.randn(3, 4, dtype=torch.float64)
    with WideProducts():
        assert F.linear(inputs, inputs).dtype is torch.float64
        assert torch.equal(F.gelu(inputs.bfloat16()), F.gelu(inputs.bfloat16()))
        assert (inputs.bfloat16() + 1).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "fast", "wide"),
    [(torch.bfloat16, False, True), (torch.bfloat16, True, False), (torch.float32, False, False)],
)
def test_encoders_widen_bfloat16_and_only_where_it_is_slow(monkeypatch, dtype, fast, wide):
    widened = []

    def widen(value):
        widened.append(value)
        return plain(value)

    plain = wide_products._widen
    monkeypatch.setattr(wide_products, "_widen", widen)
    monkeypatch.setattr(wide_products, "multiplies_fast", lambda dtype, device: fast)
    model = tiny_model().to(dtype)
    encoder = CapturingEncoder(model, states=(1,), attention_layers=(0,), logits=False)
    output = encoder(random_batch([9, 4], pad_id=model.config.pad_token_id))
    assert bool(widened) == wide
    assert output.hidden_states[0].dtype is output.queries[0].dtype is dtype
