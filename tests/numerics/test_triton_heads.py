"""The Triton kernel that fills heads up or cuts them, interpreted on a CPU: exact copies, zeros, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.support import interpreted_kernel

pytest.importorskip("triton", reason="needs triton: pip install triton")


@pytest.fixture(scope="module")
def compute():
    """Return `interpreted_kernel.compute_resized` in the process that interprets."""
    with interpreted_kernel.start() as worker:
        yield lambda *args: worker.submit(interpreted_kernel.compute_resized, *args).result()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [32, 26, 24, 128, 1])
@pytest.mark.parametrize("shape", [(1, 1, 1, 26), (3, 37, 12, 26), (0, 4, 2, 26), (2, 9, 3, 5)], ids=str)
def test_heads_and_their_gradients_are_copied_bit_by_bit(shape, width, dtype, compute):
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(shape, generator=generator).to(dtype)
    upstream = torch.randn(*shape[:-1], width, generator=generator).to(dtype)
    found, gradient = compute(heads.requires_grad_(), width, upstream)
    assert found.is_contiguous()
    assert torch.equal(found, F.pad(heads.detach(), (0, width - shape[-1])))
    assert torch.equal(gradient, F.pad(upstream, (0, shape[-1] - width)))


def test_heads_that_are_not_in_the_order_of_memory_are_taken(compute):
    heads, upstream = torch.randn(2, 3, 9, 26), torch.randn(2, 32, 9, 3)
    found, gradient = compute(
        heads.transpose(1, 2).detach().requires_grad_(), 32, upstream.transpose(1, 3).transpose(1, 2)
    )
    assert torch.equal(found, F.pad(heads.transpose(1, 2), (0, 6)))
    assert torch.equal(gradient, upstream.transpose(1, 3).transpose(1, 2)[..., :26])
