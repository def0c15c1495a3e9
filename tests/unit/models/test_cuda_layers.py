"""Layers in their form for CUDA, on a CPU that is taken for one: which change, what they compute, what stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.support.models import random_batch, tiny_model
from tests.support.numerics import relative_error
from tests.support.standin_recorder import StandInRecorder
from tinybert_ds import hardware
from tinybert_ds.engine.graphs import RecordedStudent
from tinybert_ds.losses import gradients_only
from tinybert_ds.models import cuda_layers, student
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.cuda_layers import FusedLayerNorm, ResidualOutput, TrainedLinear, use_cuda_layers
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.objective import PredictionObjective

triton_layer_norm = pytest.importorskip("tinybert_ds.models.triton_layer_norm", reason="needs triton")

CPU = torch.device("cpu")
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}


def launch(states, residual, weight, bias, eps, *, keeps):
    """Stand in for the kernel by PyTorch's operators."""
    summed = states if residual is None else states + residual
    output, *statistics = torch.native_layer_norm(summed, weight.shape, weight, bias, eps)
    kept = torch.stack([one.float().flatten() for one in statistics])
    return triton_layer_norm.Normalised(output, *((summed, kept) if keeps else (None, None)))


def launch_gradients(gradient, summed, statistics, weight):
    """Stand in for the kernel of the gradients by PyTorch's operator."""
    kinds = statistics.to(weight.dtype).unsqueeze(-1).unbind()
    found = torch.ops.aten.native_layer_norm_backward(
        gradient.contiguous(), summed, weight.shape, *kinds, weight, weight, [True] * 3
    )
    return triton_layer_norm.LayerNormGradients(*found)


@pytest.fixture(autouse=True)
def cpu_for_a_gpu(monkeypatch):
    monkeypatch.setattr(cuda_layers, "on_cuda", lambda device: device.type == "cpu")
    monkeypatch.setattr(triton_layer_norm, "device_refusal", lambda device: None)
    monkeypatch.setattr(triton_layer_norm, "launch", launch)
    monkeypatch.setattr(triton_layer_norm, "launch_gradients", launch_gradients)


def encoder_of(model_type="bert", dtype=torch.bfloat16, **settings):
    model = tiny_model(model_type, labels=("no", "yes"), num_hidden_layers=2, **settings)
    return CapturingEncoder(model, states=(0, 1, 2), attention_layers=(0, 1), logits=True).to(dtype)


def outputs_and_gradients(encoder):
    torch.manual_seed(5)
    output = encoder(random_batch([9, 4], pad_id=encoder.config.pad_token_id))
    handed_out = [*output.hidden_states, *output.queries, *output.keys, output.logits]
    total = torch.stack([tensor.float().square().sum() for tensor in handed_out]).sum()
    return [*handed_out, *torch.autograd.grad(total, list(encoder.parameters()), allow_unused=True)]


def kinds_of(model):
    kinds = [type(module) for module in model.modules()]
    return {kind: kinds.count(kind) for kind in (FusedLayerNorm, ResidualOutput, TrainedLinear)}


@pytest.mark.parametrize(
    ("model_type", "fused", "residual"),
    [
        *((name, 5, 4) for name in ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie")),
        *(("albert", 3, 0), ("distilbert", 5, 0)),
    ],
)
def test_models_compute_what_they_did_and_keep_their_names(model_type, fused, residual):
    encoder = encoder_of(model_type).train()
    plain = copy.deepcopy(encoder)
    use_cuda_layers(encoder, CPU)
    assert kinds_of(encoder)[FusedLayerNorm] == fused
    assert kinds_of(encoder)[ResidualOutput] == residual
    assert kinds_of(encoder)[TrainedLinear] >= 8
    assert list(encoder.state_dict()) == list(plain.state_dict())
    for one, other in zip(outputs_and_gradients(encoder), outputs_and_gradients(plain), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype is other.dtype
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.02 * float(other.detach().abs().max()))


def test_a_frozen_teacher_keeps_its_linear_layers_and_its_outputs():
    encoder = encoder_of().eval().requires_grad_(False)
    batch = random_batch([9, 4])
    expected = encoder(batch)
    use_cuda_layers(encoder, CPU)
    assert kinds_of(encoder) == {FusedLayerNorm: 5, ResidualOutput: 4, TrainedLinear: 0}
    with torch.no_grad():
        found = encoder(batch)
    assert all(torch.equal(one, other) for one, other in zip(found.hidden_states, expected.hidden_states, strict=True))
    assert torch.equal(found.logits, expected.logits)


def test_layers_stay_as_they_are_in_float32_on_other_devices_and_with_wide_rows(monkeypatch):
    use_cuda_layers(wide := encoder_of(dtype=torch.float32), CPU)
    assert kinds_of(wide)[FusedLayerNorm] == 0
    monkeypatch.setattr(cuda_layers, "on_cuda", hardware.on_cuda)
    use_cuda_layers(half := encoder_of(), CPU)
    assert not any(kinds_of(half).values())
    monkeypatch.setattr(cuda_layers, "on_cuda", lambda device: True)
    monkeypatch.setattr(triton_layer_norm, "MOST_WIDTH", 47)
    use_cuda_layers(half, CPU)
    assert kinds_of(half)[FusedLayerNorm] == kinds_of(half)[ResidualOutput] == 0
    assert kinds_of(half)[TrainedLinear] > 0


class OtherOutput(nn.Module):
    """Has the parts of BERT's output, and adds after the norm."""

    def __init__(self):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = nn.Linear(8, 8), nn.Dropout(0.0), nn.LayerNorm(8)

    def forward(self, hidden_states, input_tensor):
        hidden_states = self.dense(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return self.LayerNorm(hidden_states) + input_tensor


def test_a_module_of_the_same_parts_and_another_order_is_not_taken_for_berts():
    module = OtherOutput().bfloat16()
    use_cuda_layers(module, CPU)
    assert type(module) is OtherOutput
    assert type(module.LayerNorm) is FusedLayerNorm


def test_autocast_and_inputs_of_another_dtype_or_shape_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(triton_layer_norm, "launch", None)  # would fail
    layer = nn.LayerNorm(8).bfloat16()
    use_cuda_layers(layer, CPU)
    states = torch.randn(2, 3, 8)
    assert layer(states.bfloat16(), torch.ones(1, 1, 8).bfloat16()).shape == (2, 3, 8)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
    expected = nn.functional.layer_norm(states.bfloat16(), (8,), layer.weight, layer.bias)
    assert torch.equal(layer(states.bfloat16()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 7), (0, 3), (40, 130), (2, 3, 5)], ids=str)
def test_gradients_of_a_linear_layer_are_as_near_to_float64_as_pytorchs(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    plain = nn.Linear(24, 37).to(dtype)
    with torch.no_grad():
        plain.bias.normal_(generator=generator)
    layer = copy.deepcopy(plain)
    use_cuda_layers(layer, CPU)
    states = torch.randn(*shape, 24, generator=generator).to(dtype)
    upstream = torch.randn(*shape, 37, generator=generator).mul(3.7).to(dtype)
    results = []
    for module in (layer, plain, copy.deepcopy(plain).double()):
        own = states.detach().to(module.weight.dtype).requires_grad_()
        output = module(own)
        inputs = (own, module.weight, module.bias)
        results.append([output, *torch.autograd.grad(output, inputs, upstream.to(output.dtype))])
    for found, usual, exact in zip(*results, strict=True):
        assert found.dtype is dtype
        assert found.shape == exact.shape
        if exact.numel():
            assert relative_error(found, exact) <= 1.1 * relative_error(usual, exact) + 2.0**-16


def test_only_the_gradients_that_are_asked_for_are_computed():
    layer = nn.Linear(4, 5).bfloat16()
    use_cuda_layers(layer, CPU)
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 4).bfloat16()).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((5,), 3.0, dtype=torch.bfloat16))


def test_recomputed_layers_give_the_same_bits():
    encoder = encoder_of(**DROPOUT).train()
    use_cuda_layers(encoder, CPU)
    expected = outputs_and_gradients(encoder)
    recompute_layers(encoder, CPU)
    for one, other in zip(outputs_and_gradients(encoder), expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_recorded_steps_have_the_gradients_of_plain_ones():
    model = tiny_model(labels=("no", "yes"), **DROPOUT)
    encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True).bfloat16()
    module = student.DistilledStudent(encoder, PredictionObjective(weight=0.0, label_weight=1.0)).train()
    use_cuda_layers(module, CPU)
    recorded = copy.deepcopy(module)
    recorded.runner = RecordedStudent(recorded, StandInRecorder())
    for number in range(4):
        for one in (module, recorded):
            torch.manual_seed(number)
            one.zero_grad()
            with gradients_only():
                one(random_batch([9, 4]), None)["loss"].backward()
        for one, other in zip(module.parameters(), recorded.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad)


def test_compiled_models_are_left_to_the_compiler(monkeypatch):
    monkeypatch.setattr(triton_layer_norm, "launch", None)  # would fail
    monkeypatch.setattr(cuda_layers, "_Multiply", None)
    encoder = encoder_of().train()
    use_cuda_layers(encoder, CPU)
    torch._dynamo.reset()
    encoder.model.compile(backend="eager", dynamic=True)
    found = outputs_and_gradients(encoder)
    assert all(one is None or one.isfinite().all() for one in found)
    torch._dynamo.reset()
