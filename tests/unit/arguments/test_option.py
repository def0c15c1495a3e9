"""What follows from the declarations of flags, for every command that there is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

from tinybert_ds.arguments import TrainingArguments
from tinybert_ds.arguments.__main__ import COMMANDS
from tinybert_ds.arguments.augment import AugmentArguments
from tinybert_ds.arguments.option import (
    MISSING,
    STAGES,
    Command,
    Decides,
    flags_of,
    hyper_parameters_of,
    identity_of,
    owners_of,
    problems_of,
    result,
)
from tinybert_ds.arguments.prepare import PrepareArguments
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.errors import ConfigError

TRAINING = ("general_distill", "task_distill", "finetune_teacher")
BEGUN = json.loads((Path(__file__).parent / "begun_runs.json").read_text())
"""Of each stage what run.json held before the identity followed from the declarations."""
COMMAND_OF = {
    "general": "general_distill",
    "finetune": "finetune_teacher",
    "intermediate": "task_distill",
    "prediction": "task_distill",
}


def made(name, **changes):
    """Return the arguments of a command, with stand-ins for what must be given."""
    kind = COMMANDS[name]
    required = {f.name: ["x"] if f.is_list else "x" for f in flags_of(kind) if f.default is MISSING}
    return kind(**{**required, **changes})


def others(flag):
    """Return values of a flag that are not its default."""
    if flag.choices:
        found = [choice for choice in flag.choices if choice != flag.default]
    elif flag.item is bool:
        found = [not flag.default]
    else:
        found = [flag.item({float: 0.5, int: 7, str: "y"}[flag.item])]
    return [[value] if flag.is_list else value for value in found]


def resolved(kind):
    return {(flag.says.identity or flag.name): "what it comes to" for flag in flags_of(kind) if flag.says.resolved}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_every_command_says_what_it_decides_and_has_a_help(name):
    for field in dataclasses.fields(COMMANDS[name]):
        says = field.metadata["says"]
        assert says.decides in get_args(Decides), field.name
        assert says.help.endswith((".", "...", "'")), field.name
        assert set(says.stage) <= set(STAGES), field.name


def test_a_flag_means_the_same_in_every_command():
    def meaning(flag):
        says = flag.says
        return says.decides, bool(says.path), says.least, says.above, says.most, says.below, says.ds_key, says.identity

    found = {}
    for name, kind in COMMANDS.items():
        for flag in flags_of(kind):
            found.setdefault(flag.name, {}).setdefault(meaning(flag), []).append(name)
    assert {flag: meanings for flag, meanings in found.items() if len(meanings) > 1} == {}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("general_distill", {}),
        ("finetune_teacher", {}),
        ("task_distill", {}),
        ("task_distill", {"pred_distill": True}),
        ("pregenerate_training_data", {}),
        ("data_augmentation", {}),
    ],
)
def test_every_flag_that_decides_the_result_is_in_the_identity_and_no_other_is(name, stage):
    usual = made(name, **stage)
    comes_to = resolved(type(usual))
    identity = identity_of(usual, comes_to)
    for flag in flags_of(type(usual)):
        if flag.says.resolved:
            expected = flag.concerns(usual.stage) and not flag.says.later
            assert ((flag.says.identity or flag.name) in identity) == expected
            if not flag.says.later:
                continue
        changed = [made(name, **{**stage, flag.name: value}) for value in others(flag)]
        if changed[0].stage != usual.stage:
            continue  # the stage is in the identity beside the flags
        decides = flag.says.decides == "result" and flag.concerns(usual.stage)
        assert any(identity_of(each, comes_to) != identity for each in changed) == decides, flag.name


@pytest.mark.parametrize("stage", BEGUN)
def test_a_run_that_was_begun_before_goes_on_and_another_one_is_refused(stage, tmp_path):
    before = BEGUN[stage]
    kind = COMMANDS[COMMAND_OF[stage]]
    names = {flag.says.older or flag.name: flag.name for flag in flags_of(kind)}
    assert set(before["arguments"]) <= set(names)
    arguments = kind(**{names[name]: value for name, value in before["arguments"].items()})
    assert arguments.stage == stage
    identity = before["identity"]
    own = identity_of(arguments, {name: identity.get(name) for name in resolved(kind)})
    assert set(own) <= set(identity), "a flag that decides the result is new: declare it with later=True"
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity, "launches": []}))
    directory = RunDirectory(tmp_path)
    directory.verify(identity_of(arguments), resume="auto", whole=False)  # at the start, when nothing is read yet
    directory.open({**identity, **own}, resume="auto")  # what the stage adds is facts: fingerprints, columns
    changed = dataclasses.replace(arguments, seed=7, warmup_proportion=0.5)
    with pytest.raises(ConfigError, match=r"seed was 42, now 7; warmup was 0\.\d, now 0\.5"):
        directory.verify(identity_of(changed), resume="auto", whole=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothing(Command):
    """A command whose second flag is younger than some of its runs."""

    seed: int = result("Seed.", 42)
    smoothing: float = result("Share.", 0.0, later=True)


def test_a_run_that_was_begun_before_a_flag_came_goes_on_with_its_default_alone(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"identity": {"seed": 42}, "launches": []}))
    directory = RunDirectory(tmp_path)
    directory.verify(identity_of(Smoothing()), resume="auto", whole=True)
    with pytest.raises(ConfigError, match=r"smoothing was None, now 0\.1"):
        directory.verify(identity_of(Smoothing(smoothing=0.1)), resume="auto", whole=True)


def test_a_run_that_was_begun_with_a_later_flag_is_refused_without_it(tmp_path):
    identity = identity_of(Smoothing(smoothing=0.1))
    (tmp_path / "run.json").write_text(json.dumps({"identity": identity, "launches": []}))
    with pytest.raises(ConfigError, match=r"smoothing was 0\.1, now None"):
        RunDirectory(tmp_path).verify(identity_of(Smoothing()), resume="auto", whole=True)


def test_the_hyper_parameters_are_what_changes_the_learning_of_this_stage():
    shown = hyper_parameters_of(made("finetune_teacher", max_steps=5))
    assert {"learning_rate", "seed", "model", "task_name", "from_scratch", "max_steps", "num_train_epochs"} <= set(
        shown
    )
    silent = ("preempt_grace_seconds", "stall_timeout_seconds", "search", "search_seeds", "logging_steps", "output_dir")
    assert not set(silent) & set(shown)
    for changes, inside, outside in (
        ({}, "projection", "temperature"),
        ({"pred_distill": True}, "temperature", "projection"),
    ):
        shown = hyper_parameters_of(made("task_distill", **changes))
        assert inside in shown
        assert outside not in shown


def test_bounds_are_told_in_the_words_of_what_is_allowed():
    def told(name, **values):
        return [problem for problem in problems_of(made(name, **values)) if f"--{next(iter(values))} " in problem]

    assert told("general_distill", max_steps=0) == ["--max_steps is 0; it must be at least 1"]
    assert told("general_distill", learning_rate=0.0) == ["--learning_rate is 0.0; it must be above 0"]
    assert told("general_distill", weight_decay=-1.0) == ["--weight_decay is -1.0; it must not be negative"]
    assert told("general_distill", warmup_proportion=1.0) == ["--warmup_proportion is 1.0; it must be in [0, 1)"]
    assert told("data_augmentation", p=1.5) == ["--p is 1.5; it must be in [0, 1]"]
    assert told("general_distill", eval_fraction=float("nan")) == ["--eval_fraction is nan; it must be a finite number"]
    assert told("general_distill", max_steps=-(10**400))[0].endswith("it must be at least 1")
    assert told("finetune_teacher", search_seeds=[1, -2], search=True) == [
        "--search_seeds is -2; it must not be negative"
    ]


def test_owners_of_the_keys_of_the_deepspeed_config_are_named():
    owners = owners_of(TrainingArguments)
    assert owners["optimizer.params.lr"] == "--learning_rate"
    assert owners["train_micro_batch_size_per_gpu"] == "--train_batch_size and --gradient_accumulation_steps"
    assert owners["scheduler.params.total_num_steps"] == "--num_train_epochs and --max_steps"


def test_a_directory_is_known_as_such_and_no_recipe_sets_one():
    for kind in COMMANDS.values():
        for flag in flags_of(kind):
            if flag.name.endswith(("_dir", "_file", "_model")):
                assert flag.says.path, flag.name
            if flag.says.path and flag.says.in_recipes:
                assert flag.name in ("deepspeed_config", "cache_dir")  # how to run


def test_what_files_on_disk_hold_of_the_data_tools_flags_stays():
    options = identity_of(made("pregenerate_training_data"), {"language": None})
    assert list(options) == [
        *("split_sentences", "language", "shard_bytes", "text_field", "skip_bad_input", "dedup"),
        *("min_chars", "max_chars", "min_letters"),
    ]
    assert {flag.name for flag in flags_of(AugmentArguments, decides="result")} == {
        *("glove_vocab_size", "N", "M", "p", "seed", "chinese", "teacher_confidence", "dtype")
    }
    assert PrepareArguments.prog == "pregenerate_training_data.py"
