"""Muon for the matrices of the layers, as the shipped config has it: it learns, and goes on where it was."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.support.models import tiny_model
from tests.support.runs import read_metrics, run_ranks
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY
from tinybert_ds.engine.muon import layer_matrices, muon_optimizer
from tinybert_ds.models.student import decay_groups

STEPS = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return a copy of the shipped config with fp32 products."""
    values = json.loads((CONFIG_DIRECTORY / "zero0_muon_autocast_bf16.json").read_text())
    del values["torch_autocast"]
    path = tmp_path_factory.mktemp("muon") / "muon.json"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def words(general, config):
    more = ["--deepspeed_config", config, "--lr_schedule", "constant", "--eval_fraction", 0, "--save_steps", 4]
    return [*general, *more]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """Return the directory of a run of all steps on one rank."""
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(
        "general_distill", [*words, "--max_steps", STEPS, "--output_dir", folder / "out"], log=folder / "log"
    ).check()
    return folder / "out"


def losses(directory):
    return [line["loss"] for line in read_metrics(directory) if "loss" in line]


def test_the_loss_falls(whole):
    found = losses(whole)
    assert len(found) == STEPS
    assert found[-1] < 0.95 * found[0]


def test_two_ranks_that_are_stopped_go_on_with_the_losses_of_one(words, whole, tmp_path):
    for steps in (4, STEPS):
        more = ["--max_steps", steps, "--output_dir", tmp_path / "out"]
        run_ranks("general_distill", [*words, *more], world_size=2, log=tmp_path / f"log{steps}").check()
    assert losses(tmp_path / "out") == pytest.approx(losses(whole), rel=1e-4)


def test_matrices_of_layers_are_muons_and_all_else_is_adams():
    model = tiny_model(labels=("no", "yes"))
    matrices = layer_matrices(model)
    assert len(matrices) == 4 * 6  # of each layer: query, key, value, output and the two of the feed-forward part
    params = {"lr": 1e-3, "muon_lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = muon_optimizer(decay_groups(model, 0.1), params, matrices)
    of_muon = [group for group in optimizer.param_groups if group["use_muon"]]
    assert {id(p) for group in of_muon for p in group["params"]} == {id(matrix) for matrix in matrices}
    assert [(group["lr"], group["momentum"], group["weight_decay"]) for group in of_muon] == [(0.01, 0.9, 0.1)]
    assert {group["lr"] for group in optimizer.param_groups if not group["use_muon"]} == {1e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_matrix_moves_by_its_rate_in_every_direction_and_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(torch._dynamo, "optimize", None)  # what compiling would call
    layers = nn.ModuleList([nn.Linear(6, 6, bias=False)])
    before = layers[0].weight.detach().clone()
    params = {"lr": 1e-3, "muon_lr": 0.5, "ns_method": "standard"}
    optimizer = muon_optimizer(decay_groups(layers, 0.0), params, [layers[0].weight])
    layers[0].weight.grad = torch.diag(torch.tensor([1.0, 10.0, 100.0, 3.0, 30.0, 300.0]))
    optimizer.step()
    moved = torch.linalg.svdvals(before - layers[0].weight.detach()) / 0.5
    assert 0.6 < moved.min() <= moved.max() < 1.3  # Newton-Schulz brings all singular values near 1
