"""The benchmarks build what they time on the device, and read the clock when it has finished; by a stand-in of one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks import bench_losses, bench_step, measurement, step_cases
from tests.support.standin_gpu import DEVICE, stand_in_gpu

LOSSES = {
    "attention": lambda variant: bench_losses.attention_pass(variant, 64, 32, 26),
    "relations, kl": lambda variant: bench_losses.relation_pass(variant, "kl", 64, 32, 24, 48),
    "relations, scores": lambda variant: bench_losses.relation_pass(variant, "scores", 64, 32, 24, 48),
    "hidden": lambda variant: bench_losses.hidden_pass(variant, 2, 256, 24, 48),
}
VARIANTS = {
    "attention": (bench_losses.REFERENCE, bench_losses.PUBLISHED, bench_losses.GRADIENTS_ONLY),
    "relations, kl": (bench_losses.PLAIN, bench_losses.GRADIENTS_ONLY),
    "relations, scores": (bench_losses.PLAIN, bench_losses.GRADIENTS_ONLY),
    "hidden": (bench_losses.PUBLISHED, "chunked"),
}


@pytest.mark.parametrize(("loss", "variant"), [(loss, variant) for loss in LOSSES for variant in VARIANTS[loss]])
def test_every_loss_and_its_peer_are_timed_on_the_device(loss, variant, monkeypatch):
    monkeypatch.setattr(bench_losses, "default_device", lambda: DEVICE)
    run = LOSSES[loss](variant)
    with stand_in_gpu():
        gradients = run()
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    assert {gradient.device for gradient in gradients} == {DEVICE}


def test_the_published_step_is_timed_on_the_device(monkeypatch):
    stepped = []

    def optimizer(groups, **_):
        parameters = [parameter for group in groups for parameter in group["params"]]
        assert {parameter.device for parameter in parameters} == {DEVICE}
        return SimpleNamespace(step=lambda: stepped.append(1), zero_grad=lambda: None)

    monkeypatch.setattr(bench_step, "default_device", lambda: DEVICE)
    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    bench_step.prepare_peer(step_cases.CASES["tiny"], "tiny", bench_step.NO_GRAD, None)()
    assert len(stepped) == step_cases.CASES["tiny"].steps


def test_the_device_has_finished_before_and_after_what_is_timed(monkeypatch):
    log = []
    monkeypatch.setattr(measurement, "default_device", lambda: DEVICE)
    monkeypatch.setattr(measurement, "wait_for", lambda device: log.append(device.type))
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: log.append("clock") or 0.0)
    measurement.interleave({"one": lambda: log.append("run")}, rounds=1, warmups=0)
    assert log == ["meta", "clock", "run", "meta", "clock"]


def test_a_machine_without_gpu_or_told_to_take_the_cpu_measures_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert measurement.default_device() == torch.device("cpu")
    monkeypatch.delenv("DS_ACCELERATOR")
    assert measurement.default_device() == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measurement.default_device() == torch.device("cpu")
