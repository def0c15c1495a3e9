"""Sentence vectors are distilled by any number of ranks alike, and a run that was killed goes on as if it had not."""

from __future__ import annotations

import json

import pytest

from tests.support.configs import zero_config
from tests.support.runs import kill_ranks, read_metrics, run_ranks, start_ranks, wait_for_step, wait_ranks

ALL_LOSSES = ["--cosine_weight", 0.5, "--relation_weight", 2.0, "--eval_fraction", 0.2]


@pytest.fixture(scope="module")
def alone(embedding, tmp_path_factory):
    """Return the directory of a run of one rank, with all losses."""
    folder = tmp_path_factory.mktemp("alone")
    run_ranks("embed_distill", [*embedding, *ALL_LOSSES, "--output_dir", folder / "out"], log=folder / "log").check()
    return folder / "out"


def figures(directory, name):
    return [line[name] for line in read_metrics(directory) if name in line]


def test_two_ranks_have_the_losses_and_the_vectors_of_one(embedding, alone, tmp_path):
    arguments = [*embedding, *ALL_LOSSES, "--output_dir", tmp_path / "two"]
    run_ranks("embed_distill", arguments, world_size=2, log=tmp_path / "log").check()
    for name in ("loss", "l2_loss", "cosine_loss", "relation_loss", "eval_relation_loss"):
        assert figures(tmp_path / "two", name) == pytest.approx(figures(alone, name), rel=2e-4, abs=2e-5), name
    assert len(figures(alone, "loss")) == 16
    likeness = figures(tmp_path / "two", "eval_dev_spearman")
    assert likeness == pytest.approx(figures(alone, "eval_dev_spearman"), abs=0.02)  # ranks of near ties


@pytest.mark.exhaustive  # the engine is that of test_resume.py
def test_a_run_killed_on_two_ranks_goes_on_bit_for_bit(embedding, tmp_path):
    config = zero_config(tmp_path / "ds.json", stage=2)
    arguments = [*embedding, "--relation_weight", 1, "--deepspeed_config", config, "--output_dir"]
    run_ranks("embed_distill", [*arguments, tmp_path / "whole"], world_size=2, log=tmp_path / "whole.log").check()
    for attempt, step in enumerate((2, 8)):  # before the first checkpoint, and between two
        log = tmp_path / f"killed{attempt}.log"
        processes = start_ranks("embed_distill", [*arguments, tmp_path / "killed"], 2, log)
        wait_for_step(tmp_path / "killed", step, processes, log)
        kill_ranks(processes)
        wait_ranks(processes, log)
        assert json.loads((tmp_path / "killed" / "run.json").read_text())["finished"] is None
    log = tmp_path / "resumed.log"
    output = run_ranks("embed_distill", [*arguments, tmp_path / "killed"], world_size=2, log=log).check().output
    assert "resumed from" in output
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_teacher_that_is_split_among_the_ranks_teaches_the_same(embedding, alone, tmp_path):
    config = zero_config(tmp_path / "ds.json", stage=3)
    arguments = [*embedding, *ALL_LOSSES, "--teacher_engine", "zero3"]
    split = [*arguments, "--deepspeed_config", config, "--output_dir", tmp_path / "split"]
    run_ranks("embed_distill", split, world_size=2, log=tmp_path / "split.log").check()
    assert figures(tmp_path / "split", "loss") == pytest.approx(figures(alone, "loss"), rel=1e-3, abs=1e-4)
