"""The chain of distill_task.sh with stand-ins for its commands: what it runs, in which order, and where it goes on."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinybert_ds.arguments import EvaluateArguments, TaskDistillArguments, parse_arguments
from tinybert_ds.arguments.inherit import InheritArguments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

STAND_IN = """#!{python}
import os, pathlib, shlex, sys
words = sys.argv[1:]
if words[0].endswith("/run_stage.py") or words[0] == "-m":
    os.execv(sys.executable, [sys.executable, *words])
words[0] = os.path.relpath(words[0], {checkout!r})
with open({log!r}, "a") as log:
    print(shlex.join(words), file=log)
out = pathlib.Path(words[words.index("--output_dir") + 1]) if "--output_dir" in words else None
if os.environ.get("FAIL_AT", "-") in words:
    sys.exit(3)
if words[0] == "launchers/evaluate_glue.py":
    out.mkdir()
    (out / "glue_results.md").write_text("the table")
"""


@pytest.fixture
def chain(tmp_path):
    """Return a function that runs the script and returns how it ended; the commands it ran are in tmp_path/log."""
    script = tmp_path / "checkout" / "launchers" / "distill_task.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "launchers" / "distill_task.sh").read_text())
    (script.parents[1] / "tinybert_ds").symlink_to(ROOT / "tinybert_ds")
    (script.parent / "run_stage.py").symlink_to(ROOT / "launchers" / "run_stage.py")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    places = {"log": str(tmp_path / "log"), "checkout": str(script.parents[1])}
    (binaries / "python").write_text(STAND_IN.format(python=sys.executable, **places))
    (binaries / "python").chmod(0o755)
    for name in ("glue/STS-B", "t", "s", "lm"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("vectors.txt", "s/model.safetensors"):
        (tmp_path / name).touch()

    def run(*words, **environment):
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", script, *words],
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def commands(tmp_path):
    return [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]


WORDS = "sts-b --glue_dir glue --teacher t --student s --output_dir out --masked_lm lm --glove vectors.txt".split()


@pytest.mark.parametrize("words", [["--help"], ["sts-b", "-h"]])
def test_the_head_of_the_script_is_its_help(chain, tmp_path, words):
    finished = chain(*words)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("Task distillation from end to end")
    assert "#" not in finished.stdout
    assert "set -e" not in finished.stdout
    assert not (tmp_path / "log").exists()


def test_the_four_steps_run_in_order_and_the_table_is_printed(chain, tmp_path):
    finished = chain(*WORDS, "--seed", "7", "--", "--max_steps", "5")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("the table")
    augmentation, intermediate, prediction, evaluation = commands(tmp_path)
    assert augmentation[0] == "data_tools/data_augmentation.py"
    assert augmentation[augmentation.index("--glove_embs") + 1] == str(tmp_path / "vectors.txt")
    found = []
    for words in (intermediate, prediction):
        assert words[0] == "launchers/task_distill.py"
        arguments, problems = parse_arguments(TaskDistillArguments, words[1:], "task_distill.py")
        assert problems == []
        assert (arguments.data_dir, arguments.seed) == (str(tmp_path / "glue" / "STS-B"), 7)
        found.append((arguments.pred_distill, arguments.aug_train, arguments.max_steps, arguments.num_train_epochs))
    assert found == [(False, True, 5, 20), (True, False, 5, 3)]  # the paper's recipe
    assert prediction[prediction.index("--student_model") + 1] == str(tmp_path / "out" / "intermediate")
    arguments, problems = parse_arguments(EvaluateArguments, evaluation[1:], "evaluate_glue.py")
    assert problems == []
    assert arguments.models == {"teacher": str(tmp_path / "t"), "student": str(tmp_path / "out" / "student")}


def test_flags_about_texts_labels_and_machine_go_to_the_other_steps_too(chain, tmp_path):
    flags = "--max_seq_length=40 --max_steps 5 --do_lower_case --eval_batch_size 7 --seed 3 --teacher_labels a".split()
    assert chain(*WORDS, "--", *flags).returncode == 0
    augmentation, *_, evaluation = commands(tmp_path)
    words = ["--max_seq_length=40", "--do_lower_case", "--eval_batch_size", "7", "--teacher_labels", "a"]
    assert evaluation[evaluation.index("--output_dir") + 2 :] == words
    assert augmentation[augmentation.index("--seed") + 2 :] == ["--do_lower_case", "--teacher_labels", "a"]


def test_a_chain_that_was_stopped_goes_on_with_the_step_that_failed(chain, tmp_path):
    assert chain(*WORDS, FAIL_AT="--pred_distill").returncode == 3
    assert len(commands(tmp_path)) == 3
    assert chain(*WORDS).returncode == 0
    assert [("--pred_distill" in words, words[0]) for words in commands(tmp_path)[3:]] == [
        (True, "launchers/task_distill.py"),
        (False, "launchers/evaluate_glue.py"),
    ]


def test_without_augmentation_the_stages_train_on_the_plain_file(chain, tmp_path):
    finished = chain(*WORDS[:-4], "--no_augmentation")
    assert finished.returncode == 0, finished.stderr
    assert len(commands(tmp_path)) == 3
    for words in commands(tmp_path)[:2]:
        assert not parse_arguments(TaskDistillArguments, words[1:], "task_distill.py")[0].aug_train


@pytest.mark.parametrize("student", ["3L_192", "bare", "bare/config.json"])
def test_a_student_without_weights_starts_from_its_fine_tuned_teacher(chain, tmp_path, student):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "projections.safetensors"):
        (tmp_path / "bare" / name).touch()
    flags = ["--max_seq_length", "40", "--learning_rate", "1e-3"]
    finished = chain(*WORDS[:-4], "--student", student, "--no_augmentation", "--", *flags)
    assert finished.returncode == 0, finished.stderr
    start, intermediate, *_ = commands(tmp_path)
    assert start[0] == "launchers/inherit_student.py"
    arguments, problems = parse_arguments(InheritArguments, start[1:])
    assert problems == []
    assert arguments.student_model == [student if student == "3L_192" else str(tmp_path / student)]
    assert arguments.data_dir == str(tmp_path / "glue" / "STS-B")
    assert (arguments.max_seq_length, arguments.seed) == (40, 42)
    assert intermediate[intermediate.index("--student_model") + 1] == str(tmp_path / "out" / "start")


def test_a_student_with_weights_moves_towards_the_fine_tuned_teacher_on_demand(chain, tmp_path):
    words = [*WORDS[:-4], "--no_augmentation", "--inherit", "--calibration_tokens", "5000"]
    assert chain(*words).returncode == 0
    start, intermediate, *_ = commands(tmp_path)
    arguments, problems = parse_arguments(InheritArguments, start[1:])
    assert problems == []
    assert (arguments.student_model, arguments.calibration_tokens) == ([str(tmp_path / "s")], 5000)
    assert intermediate[intermediate.index("--student_model") + 1] == str(tmp_path / "out" / "start")


def test_layers_and_predictions_are_one_stage_on_demand(chain, tmp_path):
    words = [*WORDS[: WORDS.index("--masked_lm")], "--no_augmentation", "--joint", "--recipe", "small"]
    assert chain(*words, "--inherit", "--", "--max_steps", "5").returncode == 0
    start, joint, evaluation = commands(tmp_path)
    assert start[0] == "launchers/inherit_student.py"
    assert evaluation[0] == "launchers/evaluate_glue.py"
    assert joint[0] == "launchers/task_distill.py"
    arguments, problems = parse_arguments(TaskDistillArguments, joint[1:], "task_distill.py")
    assert problems == []
    assert (arguments.stage, arguments.max_steps, arguments.num_train_epochs) == ("joint", 5, 4)  # the recipe's
    assert arguments.student_model == str(tmp_path / "out" / "start")
    assert arguments.output_dir == str(tmp_path / "out" / "student")


def test_capitals_and_paths_relative_to_the_caller_are_understood(chain, tmp_path):
    (tmp_path / "mine.yaml").write_text("intermediate:\n  max_steps: 7\nprediction:\n  max_steps: 8\n")
    finished = chain("STS-B", *WORDS[1:], "--recipe", "mine.yaml", "--", "--deepspeed_config", "mine.json")
    assert finished.returncode == 0, finished.stderr
    for words in commands(tmp_path)[1:3]:
        assert words[words.index("--task_name") + 1] == "sts-b"
        assert words[words.index("--recipe") + 1] == "mine.yaml"
    assert (tmp_path / "out" / "stages.json").exists()


def test_wnli_takes_the_recipe_of_rte(chain, tmp_path):
    (tmp_path / "glue" / "WNLI").mkdir()
    assert chain("wnli", *WORDS[1:]).returncode == 0
    assert all("paper/rte" in words for words in commands(tmp_path)[1:3])


OWN = "--task_file mine.yaml --data_dir glue --recipe paper/rte --teacher t --student s --output_dir out".split()


def test_a_task_of_the_users_own_goes_through_the_same_steps(chain, tmp_path):
    (tmp_path / "mine.yaml").touch()
    finished = chain(*OWN, "--masked_lm", "lm")
    assert finished.returncode == 0, finished.stderr
    steps = commands(tmp_path)
    assert len(steps) == 4
    for words in steps:
        assert words[words.index("--task_file") + 1] == str(tmp_path / "mine.yaml")
        assert words[words.index("--data_dir") + 1] == str(tmp_path / "glue")
        assert "--task_name" not in words
    assert parse_arguments(TaskDistillArguments, steps[1][1:], "task_distill.py")[0].aug_train
    assert parse_arguments(EvaluateArguments, steps[3][1:], "evaluate_glue.py")[1] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a task"),
        (WORDS[1:], "name a task, such as sst-2, first"),
        ([*WORDS, "--task_file", "glue"], "leave out sts-b or them"),
        ([*OWN, "--no_augmentation"], "mine.yaml does not exist"),
        ([*OWN, "--glue_dir", "glue"], "leave it out with --task_file"),
        (OWN[:2] + OWN[4:], "--data_dir DIR, where the files of --task_file are, is missing"),
        (OWN[:4] + OWN[6:], "--recipe NAME is missing, such as paper/sst-2"),
        (["rte", *WORDS[1:]], "has no folder rte; there are: STS-B"),
        ([*WORDS, "--teacher", "x"], "x is not a directory"),
        ([*WORDS, "--glove", "x"], "x does not exist"),
        ([*WORDS, "--recipe", "paper/stsb"], "did you mean paper/sts-b?"),
        ([*WORDS, "--", "--max_step", "3"], "'--max_step' (did you mean --max_steps?)"),
        ([*WORDS, "--", "--temperature", "2"], "--temperature 2.0 is for --pred_distill"),
        (WORDS[:-4], "--masked_lm DIR for the augmentation, or --no_augmentation"),
        ([*WORDS, "--no_augmentation"], "without use"),
        ([*WORDS, "--calibration_tokens", "9"], "drop it, or add --inherit"),
        ([*WORDS, "--max_steps", "3"], "unknown argument --max_steps"),
        (["sts-b", "--glue_dir", "glue", "--teacher", "t", "--output_dir", "out"], "--student DIR is missing"),
    ],
)
def test_a_wrong_command_is_refused_before_any_step(chain, tmp_path, words, said):
    finished = chain(*words)
    assert finished.returncode == 2
    assert said in finished.stderr
    assert not (tmp_path / "out").exists()
