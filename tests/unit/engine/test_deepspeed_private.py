"""Norm and clipping at once, against what DeepSpeed's own functions make of the same gradients."""

from __future__ import annotations

import inspect
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from tinybert_ds.engine.deepspeed_private import (
    _clip_whole_gradients,
    _clip_without_asking,
    _norm_at_once,
    _place_moved_weights,
    clip_at_once,
    reduce_nothing_alone,
)

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda group=None: 1)
    monkeypatch.setattr("deepspeed.comm.all_reduce", lambda *_, **__: None)


def zero_optimizer(dtype, *, spoilt=None, loss_scale=1.0, clip_grad=0.5):
    """Return what DeepSpeed's functions and ours read of a ZeRO optimizer with two groups of gradients."""
    generator = torch.Generator().manual_seed(0)
    groups = [[torch.randn(shape, generator=generator).to(dtype) for shape in shapes] for shapes in ((7, 3), (5,))]
    if spoilt is not None:
        groups[1][0][2] = spoilt
    filling = torch.full((4,), 9.0)
    filling._zero_padding = True
    optimizer = SimpleNamespace(
        averaged_gradients={0: [*groups[0], filling], 1: groups[1]},
        bit16_groups=groups,
        params_in_partition=groups,
        cpu_offload=False,
        has_moe_layers=False,
        model_parallel_rank=0,
        dp_process_group=None,
        device="cpu",
        loss_scale=loss_scale,
        clip_grad=clip_grad,
        optimizer=SimpleNamespace(),
        _muon_update_lacks_loss_scale=lambda group: False,
        _model_parallel_all_reduce=lambda **_: None,
    )
    optimizer.get_grad_norm_direct = partial(DeepSpeedZeroOptimizer.get_grad_norm_direct, optimizer)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spoilt", [None, math.nan, -math.inf])
def test_the_norm_is_deepspeeds(dtype, spoilt):
    optimizer = zero_optimizer(dtype, spoilt=spoilt)
    found, expected = _norm_at_once(optimizer), DeepSpeedZeroOptimizer.scaled_global_norm(optimizer)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert torch.isinf(found) == (spoilt is not None)


@pytest.mark.parametrize("clip_grad", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
@pytest.mark.parametrize("norm", [2.0, 3e3, math.inf])
def test_the_clipping_is_deepspeeds(norm, loss_scale, clip_grad):
    optimizer = zero_optimizer(torch.float32, loss_scale=loss_scale, clip_grad=clip_grad)
    gradients = [[torch.linspace(-3, 4, 8)] for _ in range(2)]
    _clip_without_asking(optimizer, gradients[0], torch.tensor(norm))
    DeepSpeedZeroOptimizer.unscale_and_clip_grads(optimizer, gradients[1], torch.tensor(norm))
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


def test_gradients_whose_norm_is_not_taken_lose_the_loss_scale_of_their_own_step():
    optimizer = zero_optimizer(torch.float32, clip_grad=0.0)
    for scale in (1024.0, 512.0):
        optimizer.loss_scale, gradient = scale, torch.full((3,), scale)
        _clip_without_asking(optimizer, [gradient], None)
        assert gradient.tolist() == [1.0] * 3


def adam_of(parameters, *, fused):
    return torch.optim.AdamW(parameters, lr=0.1, fused=fused, foreach=False)


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_a_fused_adam_clips_in_its_step_and_moves_the_weights_as_far(loss_scale):
    weights = []
    for fused in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 8))
        weight.grad = torch.linspace(-3, 4, 8) * loss_scale
        optimizer = zero_optimizer(torch.float32, loss_scale=loss_scale, clip_grad=0.5)
        optimizer.optimizer = adam_of([weight], fused=fused)
        _clip_without_asking(optimizer, [weight.grad], torch.tensor(6.5) * loss_scale)
        assert (weight.grad.abs().max() < 1) != fused, "a fused one leaves gradients to its step"
        optimizer.optimizer.step()
        assert torch.allclose(optimizer.optimizer.state[weight]["exp_avg"], torch.linspace(-3, 4, 8) * 0.05 / 6.5)
        weights.append(weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=0)


def test_a_loss_scale_that_has_come_down_to_one_divides_nothing_any_more():
    weight, optimizer = nn.Parameter(torch.zeros(8)), zero_optimizer(torch.float32, clip_grad=0.0)
    optimizer.optimizer = adam_of([weight], fused=True)
    for step, scale in enumerate((2.0, 1.0), start=1):
        optimizer.loss_scale, weight.grad = scale, torch.full((8,), scale)
        _clip_without_asking(optimizer, [weight.grad], None)
        optimizer.optimizer.step()
        average = torch.full((8,), 1 - 0.9**step)  # of gradients that are 1 without their scale
        torch.testing.assert_close(optimizer.optimizer.state[weight]["exp_avg"], average)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("most", [0.5, 1e4])
def test_whole_gradients_are_clipped_as_torch_clips_them_and_the_norm_is_kept(most, fused):
    def torchs(engine):
        torch.nn.utils.clip_grad_norm_(engine.module.parameters(), most)

    results = []
    for clip in (_clip_whole_gradients, torchs):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
        module(torch.randn(4, 6)).square().sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        engine = SimpleNamespace(module=module, gradient_clipping=lambda: most, _global_grad_norm=None)
        engine.optimizer = adam_of(module.parameters(), fused=fused)
        clip(engine)
        engine.optimizer.step()
        moments = [engine.optimizer.state[parameter]["exp_avg"] for parameter in module.parameters()]
        results.append((engine._global_grad_norm, norm, moments))
    (kept, norm, found), (_, _, expected) = results
    torch.testing.assert_close(kept, norm)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def engine_of(optimizer, *, zero=False, half=False):
    return SimpleNamespace(
        optimizer=optimizer,
        zero_optimization=lambda: zero,
        fp16_enabled=lambda: False,
        bfloat16_enabled=lambda: half,
    )


@pytest.mark.parametrize("offloads", [False, True])
def test_an_engine_of_zero_takes_norm_and_clipping_at_once_unless_it_offloads(offloads):
    optimizer = object.__new__(DeepSpeedZeroOptimizer)
    optimizer.cpu_offload, optimizer.has_moe_layers = offloads, False
    clip_at_once(engine_of(optimizer, zero=True))
    changed = {"scaled_global_norm", "unscale_and_clip_grads"} & set(vars(optimizer))
    assert len(changed) == (0 if offloads else 2)
    assert all(hasattr(DeepSpeedZeroOptimizer, name) for name in changed), "DeepSpeed would never call it"


@pytest.mark.parametrize("half", [False, True])
def test_an_engine_of_whole_fp32_weights_clips_at_once_and_one_of_half_ones_as_it_did(half):
    engine = engine_of(object(), half=half)
    clip_at_once(engine)
    assert hasattr(engine, "clip_fp32_gradients") != half
    assert callable(DeepSpeedEngine.clip_fp32_gradients), "DeepSpeed would never call it"


@pytest.mark.parametrize(("ranks", "zero", "reduces"), [(1, False, False), (2, False, True), (1, True, True)])
def test_a_single_rank_without_zero_reduces_no_gradients(ranks, zero, reduces):
    engine = engine_of(object(), zero=zero)
    engine.dp_world_size, engine.enable_backward_allreduce = ranks, True
    reduce_nothing_alone(engine)
    assert engine.enable_backward_allreduce is reduces
    assert "if self.enable_backward_allreduce and" in inspect.getsource(DeepSpeedEngine), (
        "DeepSpeed would never ask for it"
    )


def test_weights_whose_flat_tensor_has_moved_are_placed_in_it_anew():
    flat = torch.arange(6.0)
    weights = [nn.Parameter(flat[:4].view(2, 2)), nn.Parameter(flat[4:])]
    optimizer = SimpleNamespace(
        bit16_groups_flat=[flat.clone()],
        bit16_groups=[weights],
        round_robin_bit16_groups=[weights],
        round_robin_bit16_meta=[weights],
        round_robin_bit16_offsets=[[0, 4]],
        round_robin_bit16_indices=[[0, 1]],
    )
    (moved,) = optimizer.bit16_groups_flat
    _place_moved_weights(optimizer, 0)
    assert [weight.data_ptr() for weight in weights] == [moved.data_ptr(), moved[4:].data_ptr()]
