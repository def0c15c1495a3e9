"""Every shipped DeepSpeed config that a CPU can run gives the losses of every other, within its dtype's precision."""

from __future__ import annotations

import pytest

from tests.support.runs import SERIES, THEN, read_metrics, run_ranks
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY

SHIPPED = sorted(path.stem for path in CONFIG_DIRECTORY.glob("*.json"))
ON_CPU = [name for name in SHIPPED if "fp16" not in name]
OTHER_STEPS = ("zero2_bf16_warmup_decay", "zero0_muon_autocast_bf16")  # by a schedule, an optimizer of their own
STEPS = 6
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2}


@pytest.fixture(scope="module")
def short(general):
    """Return the arguments of a run of a few steps."""
    return [*general, "--max_steps", STEPS, "--eval_fraction", 0, "--save_steps", 100]


@pytest.fixture(scope="module")
def plain(short, tmp_path_factory):
    """Return the metrics of one rank, fp32, no ZeRO, the teacher in the inference engine."""
    folder = tmp_path_factory.mktemp("plain")
    run_ranks("general_distill", [*short, "--output_dir", folder / "out"], log=folder / "log").check()
    return read_metrics(folder / "out")


@pytest.fixture(scope="module")
def runs(short, tmp_path_factory):
    """Return the folder with the runs of all configs on two ranks; half split their teacher, half recompute layers."""
    folder = tmp_path_factory.mktemp("configs")
    words = []
    for number, name in enumerate(ON_CPU):
        words += [THEN] if words else []
        words += [*short, "--output_dir", folder / name, "--deepspeed_config", CONFIG_DIRECTORY / f"{name}.json"]
        words += ["--teacher_engine", ("inference", "zero3")[number % 2]]
        words += ["--gradient_checkpointing", number % 4 in (1, 2)]
    run_ranks(SERIES, words, world_size=2, log=folder / "log").check()
    return folder


def test_both_teacher_engines_meet_every_zero_stage():
    meetings = {(number % 2, name[:5]) for number, name in enumerate(ON_CPU)}
    assert len(meetings) >= 7


@pytest.mark.parametrize("name", [name for name in ON_CPU if name not in OTHER_STEPS])
def test_a_shipped_config_trains_on_two_ranks_with_the_losses_of_the_others(runs, plain, name):
    metrics = read_metrics(runs / name)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    for line, expected in zip(metrics, plain, strict=True):
        for key in ("loss", "attention_loss", "hidden_loss", "grad_norm"):
            rel = TOLERANCE["bf16" if "bf16" in name else "fp32"]
            assert line[key] == pytest.approx(expected[key], rel=rel), (key, line["step"])


def test_bf16_autocast_of_float32_weights_multiplies_in_bf16(runs, plain):
    for line, expected in zip(read_metrics(runs / "zero0_autocast_bf16"), plain, strict=True):
        assert line["attention_loss"] != expected["attention_loss"], "float32 all the way"


def test_the_config_with_a_scheduler_of_its_own_follows_it(runs, plain):
    metrics = read_metrics(runs / OTHER_STEPS[0])
    rates = [line["learning_rate"] for line in metrics]
    # DeepSpeed's first two updates are wasted: 0, then 0, 1/2 and 1 of a warm-up of two, then down to 0 at six.
    assert rates == pytest.approx([0, 0, 0.5e-3, 1e-3, 0.75e-3, 0.5e-3])
    assert metrics[0]["loss"] == pytest.approx(plain[0]["loss"], rel=TOLERANCE["bf16"])


def test_muon_begins_with_the_loss_of_the_others_and_learns(runs, plain):
    metrics = read_metrics(runs / OTHER_STEPS[1])
    assert metrics[0]["loss"] == pytest.approx(plain[0]["loss"], rel=TOLERANCE["bf16"])
    assert [line["learning_rate"] for line in metrics] == [line["learning_rate"] for line in plain]  # AdamW's part
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_the_profiling_config_leaves_its_measurements_in_the_output_directory(runs):
    folder = runs / "zero1_bf16_profile"
    assert list((folder / "tensorboard" / "deepspeed").glob("events.*"))
    profile = (folder / "flops_profile.txt").read_text()
    assert "BertLayer" in profile
