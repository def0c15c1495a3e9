"""How a command begins: all problems at once, the directory looked into before the data."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tinybert_ds.arguments import (
    EvaluateArguments,
    FinetuneArguments,
    TaskDistillArguments,
    identity_of,
    parse_arguments,
)
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.errors import CheckpointError, ConfigError
from tinybert_ds.stages import start
from tinybert_ds.stages.start import begin_evaluation, begin_training, with_arguments

pytestmark = pytest.mark.usefixtures("one_rank_group")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    world = World(0, 1, 0, torch.device("cpu"))
    monkeypatch.setattr(start, "join", lambda log_level: world)
    monkeypatch.setattr(start, "choose_float32_products", lambda device, onednn: None)


def finetune(tmp_path, **changes):
    return FinetuneArguments(**{"model": "m", "data_dir": "d", "output_dir": str(tmp_path / "out"), **changes})


def test_what_is_wrong_with_flags_config_and_machine_is_told_together(tmp_path):
    words = "--student_model s --data_dir d --task_name sst-2 --teacher_dtype fp16 --train_batch_size 7".split()
    words += ["--output_dir", str(tmp_path / "out"), "--gradient_accumulation_steps", "2"]
    with pytest.raises(ConfigError, match="3 problems") as error:
        begin_training(*parse_arguments(TaskDistillArguments, words))
    for part in ("--teacher_model DIR is missing", "does not divide", "--teacher_dtype fp16 is not supported"):
        assert part in str(error.value)


def test_a_session_holds_the_filled_config_and_makes_no_directory(tmp_path):
    session = begin_training(finetune(tmp_path, train_batch_size=6), [])
    assert session.ds_config["train_batch_size"] == 6
    assert session.output_dir == tmp_path / "out"
    assert session.resume == "auto"
    assert not session.output_dir.exists()


def test_the_directory_is_looked_into_as_far_as_the_arguments_alone_can_tell(tmp_path):
    arguments = finetune(tmp_path)
    identity = {**identity_of(arguments), "data": "known only later"}
    directory = RunDirectory(tmp_path / "out")
    directory.open(identity, resume="auto")
    directory.note_start(identity, {})
    begin_training(arguments, [])
    with pytest.raises(ConfigError, match="seed was 42, now 7"):
        begin_training(finetune(tmp_path, seed=7), [])
    with pytest.raises(CheckpointError, match="no complete checkpoint of this run"):
        begin_training(finetune(tmp_path, resume="step-3"), [])


def test_the_directory_of_several_runs_is_not_taken_for_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lr1e-05-seed1").mkdir()
    with pytest.raises(ConfigError, match="no run of this program"):
        begin_training(finetune(tmp_path), [])
    session = begin_training(finetune(tmp_path), [], single=False)
    own = dataclasses.replace(session.arguments, learning_rate=1e-3)
    assert with_arguments(session, own).ds_config["optimizer"]["params"]["lr"] == 1e-3


def test_an_evaluation_looks_at_no_deepspeed_config(tmp_path):
    arguments = EvaluateArguments(model=["m"], output_dir=str(tmp_path))
    assert begin_evaluation(arguments, []).ds_config == {}
    with pytest.raises(ConfigError, match="something is wrong"):
        begin_evaluation(arguments, ["something is wrong"])


@pytest.mark.parametrize("name", ["", "lr1e-05-seed1"])
def test_a_run_of_an_earlier_version_goes_on_with_fp32_products_where_new_ones_have_bf16(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tinybert_ds.engine.ds_config.multiplies_fast", lambda dtype, device: True)
    arguments = finetune(tmp_path)

    def has_autocast():
        return "torch_autocast" in begin_training(arguments, [], single=False).ds_config

    def new_trial_has_autocast():
        session = begin_training(arguments, [], single=False)
        trial = dataclasses.replace(arguments, output_dir=str(tmp_path / "out" / "lr1e-05-seed2"))
        return "torch_autocast" in with_arguments(session, trial).ds_config

    assert has_autocast()
    assert new_trial_has_autocast()
    directory = RunDirectory(tmp_path / "out" / name)
    directory.open(identity_of(arguments), resume="auto")
    directory.note_start(identity_of(arguments), {"deepspeed_config": {"train_batch_size": 32}})
    assert not has_autocast()
    assert not new_trial_has_autocast()
    directory.note_start(identity_of(arguments), {"deepspeed_config": {"torch_autocast": {"enabled": True}}})
    assert has_autocast()
