import json

import pytest

from tests.support.models import model_directory
from tests.support.runs import run_ranks
from tinybert_ds.arguments import FinetuneArguments, GeneralDistillArguments, TaskDistillArguments, parse_arguments
from tinybert_ds.arguments.recipes import shipped_recipes
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import ConfigError

TASK = "--data_dir d --output_dir o".split()
STAGES = {
    "finetune": (FinetuneArguments, ["--model", "m", *TASK]),
    "intermediate": (TaskDistillArguments, ["--student_model", "s", "--teacher_model", "t", *TASK]),
    "prediction": (TaskDistillArguments, ["--student_model", "s", "--teacher_model", "t", *TASK, "--pred_distill"]),
}
# arXiv 1909.10351, section 4.2 and the appendix
EPOCHS = {"cola": 50, "mnli": 10, "qqp": 10, "qnli": 10, "sst-2": 20, "mrpc": 20, "sts-b": 20, "rte": 20}


def parse(stage, *words, task="sst-2"):
    kind, command = STAGES[stage]
    return parse_arguments(kind, [*command, "--task_name", task, *words], "command.py")


@pytest.mark.parametrize("task", EPOCHS)
def test_the_papers_recipe_of_each_task_sets_every_stage(task):
    assert f"paper/{task}" in shipped_recipes()
    assert TASKS[task].max_seq_length == (64 if task in ("cola", "sst-2") else 128)
    intermediate, problems = parse("intermediate", "--recipe", f"paper/{task}", task=task)
    assert problems == []
    found = (intermediate.num_train_epochs, intermediate.learning_rate, intermediate.train_batch_size)
    assert (*found, intermediate.max_seq_length) == (EPOCHS[task], 5e-5, 32, None)  # None: the task's own
    assert (intermediate.aug_train, intermediate.schedule, intermediate.warmup) == (True, "constant", 0.0)
    prediction, problems = parse("prediction", "--recipe", f"paper/{task}", task=task)
    assert problems == []
    assert (prediction.num_train_epochs, prediction.learning_rate, prediction.max_seq_length) == (3, 3e-5, None)
    assert (prediction.schedule, prediction.warmup) == ("linear", 0.1)
    assert prediction.aug_train == (task != "sts-b")  # learned from the original data
    finetune, problems = parse("finetune", "--recipe", f"paper/{task}", task=task)
    assert problems == []
    assert finetune.num_train_epochs == 3


def test_general_distillation_has_a_recipe_too():
    words = (
        "--pregenerated_data p --teacher_model t --student_model 4L_312 --output_dir o --recipe paper/general".split()
    )
    arguments, problems = parse_arguments(GeneralDistillArguments, words, "command.py")
    assert problems == []
    assert (arguments.train_batch_size, arguments.num_train_epochs, arguments.max_seq_length) == (256, 3, 128)


def test_flags_win_over_the_recipe_wherever_they_stand():
    words = ["--num_train_epochs", "2", "--recipe", "paper/cola", "--aug_train", "false"]
    arguments, problems = parse("intermediate", *words)
    assert problems == []
    assert (arguments.num_train_epochs, arguments.aug_train, arguments.learning_rate) == (2, False, 5e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "intermediate: {learning_rat: 1}",
            "learning_rat (did you mean learning_rate?) cannot be set by a recipe; these can: ",
        ),
        ("intermediate: {teacher_model: t}", "teacher_model cannot be set by a recipe"),
        ("intermediate: {learning_rate: fast}", "--learning_rate is 'fast'; it must be a number"),
        ("intermediate: [1]", "`flag: value` lines"),
        ("prediction: {seed: 1}", "has no section intermediate; it has prediction"),
        ("a: [", "not valid YAML"),
        ("- a", "must hold sections"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_its_name(tmp_path, content, said):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        parse("intermediate", "--recipe", str(tmp_path / "mine.yaml"))
    assert "mine.yaml" in str(error.value)
    assert said in str(error.value)


def test_an_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"that name \(did you mean paper/sst-2\?\); there are paper/general"):
        parse("intermediate", "--recipe", "paper/sst2")
    _, problems = parse_arguments(
        TaskDistillArguments,
        [*"--do_eval --student_model s --task_name cola --recipe paper/cola".split(), *TASK],
        "command.py",
    )
    assert problems == [
        "--recipe paper/cola is for the intermediate stage and --pred_distill and --joint; leave it out of --do_eval"
    ]


@pytest.mark.slow
def test_run_json_holds_the_recipes_values_beside_those_that_were_used(inputs, tmp_path):
    (tmp_path / "mine.yaml").write_text("finetune:\n  learning_rate: 2e-3\n  max_steps: 7\n")
    model = model_directory(tmp_path / "model")
    words = ["--model", model, "--data_dir", inputs / "task", "--task_name", "sst-2", "--train_batch_size", 8]
    words += ["--recipe", tmp_path / "mine.yaml", "--max_steps", 2, "--output_dir", tmp_path / "out"]
    run_ranks("finetune", words, log=tmp_path / "log").check()
    launch = json.loads((tmp_path / "out" / "run.json").read_text())["launches"][0]
    assert launch["recipe"] == {"learning_rate": "2e-3", "max_steps": "7"}
    assert (launch["arguments"]["learning_rate"], launch["arguments"]["max_steps"]) == (2e-3, 2)
    assert launch["arguments"]["recipe"] == str(tmp_path / "mine.yaml")


def test_a_recipe_of_an_earlier_version_may_call_a_flag_by_its_older_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("general:\n  init_embeddings: svd\n")
    basis = ["--pregenerated_data", "d", "--teacher_model", "t", "--student_model", "s", "--output_dir", "o"]
    arguments, problems = parse_arguments(GeneralDistillArguments, [*basis, "--recipe", str(path)], "command.py")
    assert problems == []
    assert arguments.init == "svd"


@pytest.mark.parametrize("stage", STAGES)
def test_the_recipe_for_small_students_fits_every_task_stage_and_its_rates_are_above_the_papers(stage):
    small, problems = parse(stage, "--recipe", "small")
    assert problems == []
    paper, _ = parse(stage, "--recipe", "paper/sst-2")
    assert small.learning_rate > 5 * paper.learning_rate


def test_the_recipe_for_small_students_has_the_general_and_the_joint_stage_too():
    words = "--pregenerated_data p --teacher_model t --student_model 3L_192 --output_dir o --recipe small".split()
    assert parse_arguments(GeneralDistillArguments, words, "command.py")[0].learning_rate == 3e-4
    arguments, problems = parse("intermediate", "--joint", "--recipe", "small")
    assert (problems, arguments.learning_rate, arguments.stage) == ([], 3e-4, "joint")
