"""A single rank under ZeRO hands its gradients over whole: the weights and norms are those of DeepSpeed's own way."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import nn

CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 0.05,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True, "fused": True}},
    "steps_per_print": 2**31 - 1,
}
CASES: dict[str, dict[str, Any]] = {
    "zero 2, bf16": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
    "zero 2, bf16, micro-batches": {
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True},
        "gradient_accumulation_steps": 3,
    },
    "zero 1, fp32, micro-batches": {"zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 3},
    "zero 2, round robin": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "zero 2, sums in fp32": {
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    },
    "zero 2, offloaded": {
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
    },
}
KEEPS_HOOKS = {"zero 2, sums in fp32", "zero 2, offloaded"}


class Student(nn.Module):
    """Layers whose loss leaves one of them out in odd steps: it has no gradient then."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.sometimes = nn.Linear(8, 8)

    def forward(self, states: torch.Tensor, *, whole: bool) -> torch.Tensor:
        for layer in self.layers:
            states = layer(states).tanh()
        return (self.sometimes(states) if whole else states).float().square().mean()


class Trained(NamedTuple):
    """What a few steps have left behind."""

    weights: list[torch.Tensor]
    norms: list[float]
    num_hooks: int  # of DeepSpeed's, one for each parameter that it takes by itself
    num_placements: int  # how often flat weights were cut into views anew


def train(case: str, *, whole: bool) -> Trained:
    """Take four steps with an engine of ours, or one whose gradients and weights DeepSpeed handles its own way."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer  # noqa: PLC0415 - in the child alone

    from tinybert_ds.engine import student  # noqa: PLC0415

    torch.manual_seed(0)
    config = {**CONFIG, **CASES[case]}
    accumulation = config.get("gradient_accumulation_steps", 1)
    config["train_batch_size"] = 4 * accumulation
    with ExitStack() as replaced:
        for name in () if whole else ("hand_over_whole_gradients", "place_weights_once"):
            replaced.enter_context(mock.patch.object(student, name))
        engine = student.build_engine(
            Student(), config, weight_decay=0.1, total_steps=8, warmup=0.0, schedule="constant"
        )
    name, norms = "_update_model_bit16_weights", []
    place = getattr(DeepSpeedZeroOptimizer, name)
    with mock.patch.object(DeepSpeedZeroOptimizer, name, autospec=True, side_effect=place) as placed:
        for step in range(4):
            for part in range(accumulation):
                inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * step + part))
                engine.backward(engine(inputs.to(next(engine.module.parameters()).dtype), whole=step % 2 == 0))
                engine.step()
            norms.append(float(engine.get_global_grad_norm()))
    weights = [value.float() for value in student.full_state(engine).values()]
    return Trained(weights, norms, len(engine.optimizer._grad_acc_hooks), placed.call_count)


def train_all() -> dict[str, tuple[Trained, Trained]]:
    """Train in every case, our way and DeepSpeed's; in a process of its own, which joins a process group."""
    from tinybert_ds.engine.ranks.process_group import init_distributed  # noqa: PLC0415 - in the child alone

    init_distributed()
    return {case: (train(case, whole=True), train(case, whole=False)) for case in CASES}


@pytest.fixture(scope="module")
def trained():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train_all).result()


@pytest.mark.parametrize("case", CASES)
def test_weights_and_norms_are_bit_for_bit_those_of_deepspeeds_own_way(trained, case):
    ours, own_way = trained[case]
    assert ours.norms == own_way.norms
    assert all(math.isfinite(norm) and norm > 0.05 for norm in ours.norms), "nothing was clipped"
    for found, expected in zip(ours.weights, own_way.weights, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_taken_one_by_one_only_where_they_are_offloaded_or_summed_in_another_precision(trained, case):
    ours, own_way = trained[case]
    assert own_way.num_hooks == 8  # four weights and four biases
    assert ours.num_hooks == (8 if case in KEEPS_HOOKS else 0)


def test_weights_that_are_where_they_were_are_not_placed_anew(trained):
    for ours, own_way in trained.values():
        assert own_way.num_placements == 4 * 2  # steps and groups of parameters
        assert ours.num_placements == 0
