"""From words to values: the same for every command, with all mistakes told together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tinybert_ds.arguments import EvaluateArguments, FinetuneArguments, TaskDistillArguments, parse, parse_arguments
from tinybert_ds.arguments.__main__ import COMMANDS
from tinybert_ds.arguments.augment import AugmentArguments
from tinybert_ds.arguments.compare import ReportArguments
from tinybert_ds.arguments.inspect import InspectArguments
from tinybert_ds.arguments.launch import LaunchArguments
from tinybert_ds.arguments.option import MISSING, flags_of
from tinybert_ds.arguments.parsing import handed_on
from tinybert_ds.errors import ConfigError

ROOT = Path(__file__).parents[3]
TASK = ["--student_model", "s", "--teacher_model", "t", "--data_dir", "d", "--task_name", "sst-2", "--output_dir", "o"]
EVALUATE = ["--task_name", "rte", "--glue_dir", "g", "--output_dir", "o"]


def words_of(kind, **given):
    """Return a command line with what must be given, and more."""
    values = {flag.name: "x" for flag in flags_of(kind) if flag.default is MISSING} | given
    named = [
        word
        for flag in flags_of(kind)
        if flag.name in values and not flag.says.positional
        for word in (f"--{flag.name}", values[flag.name])
    ]
    return named + [values[flag.name] for flag in flags_of(kind) if flag.name in values and flag.says.positional]


def told(kind, words):
    """Return everything that is said of a command line."""
    try:
        return "\n".join(parse_arguments(kind, words)[1])
    except ConfigError as error:
        return str(error)


def test_missing_flags_wrong_types_unknown_flags_bounds_and_contradictions_are_told_together():
    words = ["--max_steps", "ten", "--lr_schedule", "liner", "--seed", "-1", "--do_lower_case", "--no_lower_case"]
    text = told(
        TaskDistillArguments,
        [*words, "--trainbatch_size", "3", "--task_name", "sst-2", "--aug_train=maybe", "--eval_step"],
    )
    assert text.startswith("11 problems:")
    for part in (
        "--student_model is missing: Hugging Face directory of the student",
        "--data_dir is missing",
        "--output_dir is missing",
        "--max_steps is 'ten'; it must be a whole number",
        "--lr_schedule is 'liner'; it must be one of auto, linear, constant, cosine, warmup_stable_decay (did you mean "
        "linear?)",
        "--seed is -1; it must not be negative",
        "--aug_train is 'maybe'; it must be true or false",
        "--eval_step needs a value",
        "unknown argument '--trainbatch_size' (did you mean --train_batch_size?)",
        "--do_lower_case and --no_lower_case contradict",
        "--teacher_model DIR is missing; only --do_eval runs without a teacher",
    ):
        assert part in text, part


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_flag_with_the_one_that_was_meant(name):
    kind = COMMANDS[name]
    flag = next(flag for flag in flags_of(kind) if not flag.says.positional)
    words = [f"--{flag.name}x=1", *words_of(kind)]
    assert f"unknown argument '--{flag.name}x' (did you mean --" in told(kind, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_every_flag_with_its_help(name, capsys):
    kind = COMMANDS[name]
    with pytest.raises(SystemExit) as ended:
        parse(kind, ["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in flags_of(kind):
        assert flag.shown in text
        assert " ".join(flag.says.help.split()[:3]) in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_home_directory_is_found_in_every_flag_that_names_a_path(name, monkeypatch):
    monkeypatch.setenv("HOME", "/house/mine")
    kind = COMMANDS[name]
    for flag in flags_of(kind):
        if not flag.says.path:
            continue
        words = words_of(kind, **{flag.name: "~/x y"})
        if flag.name == "recipe":  # which is read at once
            assert "--recipe /house/mine/x y: no such file" in told(kind, words)
            continue
        value = getattr(parse_arguments(kind, words)[0], flag.name)
        assert (value[0] if flag.is_list else value) == "/house/mine/x y", flag.name


def test_a_home_directory_that_is_not_there_is_told_and_no_directory_of_that_name_is_made():
    assert "--output_dir is ~no-such-user/x; there is no such home directory" in told(
        TaskDistillArguments, [*TASK, "--output_dir", "~no-such-user/x"]
    )


@pytest.mark.parametrize(
    ("word", "models"),
    [
        ("out", {"model": "out"}),
        ("student=out", {"student": "out"}),
        ("student=out/lr=3", {"student": "out/lr=3"}),
        ("out/lr=3/student", {"model": "out/lr=3/student"}),
        ("./lr=3", {"model": "./lr=3"}),
        ("~/a=b", {"model": "/house/mine/a=b"}),
        ("student=~/a=b", {"student": "/house/mine/a=b"}),
    ],
)
def test_a_model_has_a_name_or_none_whatever_is_in_its_path(word, models, monkeypatch):
    monkeypatch.setenv("HOME", "/house/mine")
    assert parse(EvaluateArguments, [*EVALUATE, "--model", word]).models == models


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("negative,positive", ["negative", "positive"]),
        ('"yes, sure",no', ["yes, sure", "no"]),
        ('"a ""b""",c', ['a "b"', "c"]),
    ],
)
def test_label_names_may_have_commas_and_quotes(text, names):
    for kind, words in ((TaskDistillArguments, TASK), (EvaluateArguments, [*EVALUATE, "--model", "m"])):
        assert parse(kind, [*words, "--teacher_labels", text]).stated_labels == names


@pytest.mark.parametrize("text", ['"yes, sure', "a,a", "a,,b"])
def test_label_names_that_cannot_be_are_refused(text):
    assert "--teacher_labels" in told(TaskDistillArguments, [*TASK, "--teacher_labels", text])


def test_switches_are_written_in_every_way():
    for words, value in (
        (["--aug_train"], True),
        (["--aug_train", "no"], False),
        (["--aug-train=TRUE"], True),
        (["--aug_train", "--aug_train=0"], False),
    ):
        assert parse(TaskDistillArguments, [*TASK, *words]).aug_train is value


def test_a_switch_before_a_positional_argument_leaves_it_alone():
    values = parse(InspectArguments, ["--verify", "shards"])
    assert (values.verify, values.directory) == (True, "shards")
    assert parse(ReportArguments, ["--output_dir", "o", "a", "b"]).runs == ["a", "b"]
    assert "RUNS is missing" in told(ReportArguments, ["--output_dir", "o"])


def test_what_stands_behind_a_stage_is_the_stages():
    words = "--hostfile h --forward A --forward B general_distill --output_dir o --hostfile mine --seed".split()
    values = parse(LaunchArguments, words)
    assert (values.hostfile, values.forward, values.stage_name) == ("h", ["A", "B"], "general_distill")
    assert values.flags == ["--output_dir", "o", "--hostfile", "mine", "--seed"]


def test_a_word_too_long_to_be_shown_is_cut():
    text = told(TaskDistillArguments, [*TASK, "--max_steps", "9" * 5000 + "x"])
    assert "(5,001 characters)" in text
    assert len(text) < 250


def test_a_recipe_with_a_wrong_value_is_named_beside_the_other_mistakes(tmp_path):
    (tmp_path / "mine.yaml").write_text("intermediate: {learning_rate: fast, seed: -3}\n")
    text = told(TaskDistillArguments, [*TASK, "--recipe", str(tmp_path / "mine.yaml"), "--max_steps", "x"])
    assert "mine.yaml: --learning_rate is 'fast'; it must be a number" in text
    assert "  - --max_steps is 'x'" in text
    assert "--seed is -3" in text


def test_a_search_tells_of_a_wrong_value_in_its_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("finetune: {learning_rate: fast}\n")
    words = ["--search", "--recipe", str(tmp_path / "mine.yaml"), "--model", "m", *TASK[4:]]
    assert told(FinetuneArguments, words).endswith("mine.yaml: --learning_rate is 'fast'; it must be a number")


def test_flags_are_handed_to_a_command_that_knows_them_unless_it_has_its_own_or_they_decide_a_result():
    words = (
        "--no-cuda --max_seq_length=4 --max_steps 5 --teacher_labels a,b --pooler_relu --seed 3 --data_dir x".split()
    )
    assert handed_on(EvaluateArguments, ["--data_dir=mine"], words) == [
        "--no-cuda",
        "--max_seq_length=4",
        "--teacher_labels",
        "a,b",
    ]
    assert handed_on(AugmentArguments, ["--data_dir", "mine"], words) == ["--no-cuda", "--teacher_labels", "a,b"]


def test_scripts_ask_for_flags_to_hand_on_and_get_words_as_they_were():
    asked = ["--for", "evaluate_glue", "--model", "a b", "--", "--teacher_labels", "a\nb, c", "--max_steps", "3"]
    command = [sys.executable, "-m", "tinybert_ds.arguments", *asked]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "--teacher_labels\0a\nb, c\0"
