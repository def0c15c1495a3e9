"""The Triton kernels of layer normalisation, interpreted on a CPU: accuracy, shapes, layouts, what is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import interpreted_kernel
from tests.support.numerics import relative_error

pytest.importorskip("triton", reason="needs triton: pip install triton")

SHAPES = {
    "one token": (1, 1, 8),
    "odd": (3, 7, 37),
    "several rows of a program, the last one not full": (2, 71, 312),
    "wide": (1, 5, 768),
    "wider than a program has threads for": (1, 3, 2100),
    "more rows than programs": (1, 9000, 4),
    "no rows": (0, 4, 16),
}
"""B, S, H."""
DTYPES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def compute():
    """Return `interpreted_kernel.compute_layer_norm` in the process that interprets."""
    with interpreted_kernel.start() as worker:
        yield lambda *args, **options: worker.submit(interpreted_kernel.compute_layer_norm, *args, **options).result()


def case_of(shape, dtype, *, adds, offset=0.0):
    """Return a layer with weights that are not 1, an input, what is added to it or not, and a gradient of many bits."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.LayerNorm(shape[-1], eps=1e-6)
    with torch.no_grad():
        layer.weight.normal_(1.0, 0.5, generator=generator)
        layer.bias.normal_(0.0, 0.5, generator=generator)
    given = [torch.randn(shape, generator=generator).add(offset).to(dtype).requires_grad_() for _ in range(1 + adds)]
    return layer.to(dtype), given, torch.randn(shape, generator=generator).mul(37.3).to(dtype)


def plain(layer, given, upstream, dtype):
    """Return PyTorch's output and gradients in a dtype, of the sum as the inputs' dtype has it."""
    summed = sum(given[1:], given[0])
    wide = [tensor.detach().to(dtype).requires_grad_() for tensor in (summed, *layer.parameters())]
    output = nn.functional.layer_norm(wide[0], layer.normalized_shape, *wide[1:], layer.eps)
    by_sum, *others = torch.autograd.grad(output, wide, upstream.to(dtype))
    return [output.detach(), *[by_sum] * len(given), *others]


@pytest.mark.parametrize("adds", [True, False], ids=["added to", "alone"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_are_as_near_to_float64_as_pytorchs(dtype, shape, adds, compute):
    layer, given, upstream = case_of(SHAPES[shape], dtype, adds=adds)
    exact, usual = (plain(layer, given, upstream, kind) for kind in (torch.float64, dtype))
    found = compute(layer, *given, upstream=upstream)
    assert [tensor.dtype for tensor in found] == [dtype] * (4 + adds)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in exact]
    for one, other, right in zip(found, usual, exact, strict=True):
        if right.numel():
            assert relative_error(one, right) <= 1.1 * relative_error(other, right) + 2.0**-16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_far_from_zero_lose_no_more_than_with_pytorch(dtype, compute):
    layer, given, upstream = case_of((2, 5, 300), dtype, adds=False, offset=200.0)
    exact, usual = (plain(layer, given, upstream, kind) for kind in (torch.float64, dtype))
    for one, other, right in zip(compute(layer, *given, upstream=upstream), usual, exact, strict=True):
        assert relative_error(one, right) <= 1.1 * relative_error(other, right) + 1e-4


def test_both_addends_get_the_same_gradient_and_it_is_that_of_the_rounded_sum(compute):
    layer, given, upstream = case_of((2, 9, 40), torch.bfloat16, adds=True)
    _, first, second, *_ = compute(layer, *given, upstream=upstream)
    _, alone, *_ = compute(layer, (given[0] + given[1]).detach().requires_grad_(), upstream=upstream)
    assert torch.equal(first, second)
    assert torch.equal(first, alone)


def test_what_is_not_differentiated_has_the_same_output(compute):
    layer, given, upstream = case_of((2, 9, 40), torch.float16, adds=True)
    frozen = nn.LayerNorm(40, eps=1e-6, dtype=torch.float16).requires_grad_(False)
    frozen.load_state_dict(layer.state_dict())
    (output,) = compute(frozen, *(tensor.detach() for tensor in given))
    assert torch.equal(output, compute(layer, *given, upstream=upstream)[0])


def test_inputs_and_gradients_that_are_not_in_the_order_of_memory_are_taken(compute):
    layer, given, upstream = case_of((4, 9, 40), torch.float16, adds=True)
    turned = [tensor.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for tensor in given]
    assert not turned[0].is_contiguous()
    found = compute(layer, *turned, upstream=upstream.transpose(1, 2).contiguous().transpose(1, 2))
    for one, other in zip(found, compute(layer, *given, upstream=upstream), strict=True):
        assert torch.equal(one, other)


def test_a_row_that_is_not_finite_leaves_the_others_as_they_are(compute):
    layer, (states,), upstream = case_of((1, 6, 40), torch.bfloat16, adds=False)
    spoiled = states.detach().clone()
    spoiled[0, 2, 3] = float("inf")
    found = compute(layer, spoiled.requires_grad_(), upstream=upstream)
    whole = compute(layer, states, upstream=upstream)
    others = [0, 1, 3, 4, 5]
    assert found[0][0, 2].isnan().all()
    for one, other in zip(found[:2], whole[:2], strict=True):
        assert torch.equal(one[0, others], other[0, others])
