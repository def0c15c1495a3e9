"""What is switched off of DeepSpeed's defaults, what is kept and told, and how large its buckets are."""

from __future__ import annotations

import json

import pytest

from tinybert_ds.arguments import TrainingArguments
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY, resolve_config
from tinybert_ds.engine.ds_defaults import costly_settings, fill_defaults, fitted_buckets

SHIPPED = sorted(CONFIG_DIRECTORY.glob("*.json"))


def resolve(config, world_size=1):
    arguments = TrainingArguments(output_dir="out", train_batch_size=32, learning_rate=1e-3)
    resolved, problems = resolve_config(config, arguments, world_size=world_size, device_type="cuda")
    assert problems == []
    return resolved


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_config_lets_deepspeed_wait_for_the_device_or_look_through_the_gradients(path):
    stated = json.loads(path.read_text())
    assert stated["timers"]["throughput"]["enabled"] is False
    assert stated.get("bf16", {}).get("check_grad_overflow", False) is False
    assert costly_settings(resolve(stated)) == []


def test_what_a_config_does_not_state_is_off_and_clipping_is_always_stated():
    config = resolve({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    assert config["timers"]["throughput"]["enabled"] is False
    assert config["bf16"]["check_grad_overflow"] is False
    assert config["gradient_clipping"] == 1.0  # of --max_grad_norm; absent, DeepSpeed would clip as it likes
    assert "bf16" not in resolve({})


def test_what_a_config_does_state_is_kept_and_its_cost_told():
    config = resolve({"bf16": {"enabled": True, "check_grad_overflow": True}, "timers": {"throughput": {}}})
    (told,) = costly_settings(config)
    assert "bf16.check_grad_overflow is true in the DeepSpeed config" in told
    config = resolve({"timers": {"throughput": {"enabled": True}}})
    assert "waits for the device twice a step" in costly_settings(config)[0]


def test_timers_of_the_wrong_shape_are_named():
    arguments = TrainingArguments(output_dir="out", train_batch_size=32)
    for wrong in ({"timers": True}, {"timers": {"throughput": 1}}):
        _, problems = resolve_config(wrong, arguments, world_size=1, device_type="cpu")
        assert len(problems) == 1
        assert "must be a JSON object" in problems[0]


@pytest.mark.parametrize(("world_size", "overlaps"), [(1, False), (2, True)])
def test_one_rank_has_nothing_to_overlap(world_size, overlaps):
    config = {"zero_optimization": {"stage": 2, "overlap_comm": True}}
    fill_defaults(config, world_size=world_size)
    assert config["zero_optimization"]["overlap_comm"] is overlaps


def test_buckets_are_no_larger_than_all_gradients_and_the_config_stays_as_it_was():
    config = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000_000}}
    assert fitted_buckets(config, 1000)["zero_optimization"]["reduce_bucket_size"] == 1000
    assert fitted_buckets(config, 10**9) == config
    assert config["zero_optimization"]["reduce_bucket_size"] == 50_000_000
    for other in (
        {},
        {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5}},
        {"zero_optimization": {"stage": 2}},
    ):
        assert fitted_buckets(other, 1) == other
