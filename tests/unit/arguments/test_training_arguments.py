import pytest

from tinybert_ds.arguments import (
    EvaluateArguments,
    FinetuneArguments,
    GeneralDistillArguments,
    TaskDistillArguments,
    parse_arguments,
)
from tinybert_ds.errors import ConfigError

GENERAL = [
    "--pregenerated_data",
    "shards",
    "--teacher_model",
    "teacher",
    "--student_model",
    "4L_312",
    "--output_dir",
    "out",
]
TASK = ["--student_model", "student", "--data_dir", "data", "--task_name", "sst-2", "--output_dir", "out"]


def parse(kind, words):
    return parse_arguments(kind, words, "command.py")


def test_published_flags_of_general_distillation_parse_without_complaint():
    words = [
        *GENERAL,
        *[
            "--local_rank=0",
            "--max_seq_length",
            "128",
            "--reduce_memory",
            "--do_lower_case",
            "--train_batch_size",
            "256",
        ],
        *["--eval_batch_size", "8", "--learning_rate", "1e-4", "--weight_decay", "1e-4", "--num_train_epochs", "3"],
        *[
            "--warmup_proportion",
            "0.1",
            "--seed",
            "1",
            "--gradient_accumulation_steps",
            "2",
            "--continue_train",
            "--eval_step",
            "500",
        ],
    ]
    arguments, problems = parse(GeneralDistillArguments, words)
    assert problems == []
    assert arguments.train_batch_size == 256
    assert arguments.lower_case is True
    assert arguments.checkpoint_steps == 500


def test_published_flags_of_task_distillation_parse_without_complaint():
    words = [
        *TASK,
        *[
            "--teacher_model",
            "t",
            "--aug_train",
            "--pred_distill",
            "--do_lower_case",
            "--temperature",
            "1.",
            "--eval_step",
            "100",
        ],
    ]
    arguments, problems = parse(TaskDistillArguments, words)
    assert problems == []
    assert arguments.pred_distill
    assert arguments.aug_train


def test_all_problems_are_reported_together():
    words = [*GENERAL, "--train_batch_size", "0", "--learning_rat", "1", "--do_lower_case", "--no_lower_case"]
    _, problems = parse(GeneralDistillArguments, words)
    text = "\n".join(problems)
    assert "--train_batch_size is 0" in text
    assert "unknown argument '--learning_rat'" in text
    assert "--do_lower_case and --no_lower_case contradict" in text


def test_flags_are_never_abbreviated():
    _, problems = parse(TaskDistillArguments, [*TASK, "--teacher_model", "t", "--pred_dis"])
    assert problems == [
        "unknown argument '--pred_dis' (did you mean --pred_distill?); command.py --help lists the known ones"
    ]


def test_a_missing_required_flag_is_a_config_error():
    with pytest.raises(ConfigError, match="--teacher_model"):
        parse(GeneralDistillArguments, [w for w in GENERAL if w not in ("--teacher_model", "teacher")])


def test_the_two_names_of_the_checkpoint_interval_may_not_differ():
    _, problems = parse(GeneralDistillArguments, [*GENERAL, "--save_steps", "10", "--eval_step", "20"])
    assert len(problems) == 1
    assert "two names of one setting" in problems[0]


def test_intermediate_stage_has_a_constant_rate_without_warm_up_and_the_prediction_stage_a_linear_one():
    intermediate, _ = parse(TaskDistillArguments, [*TASK, "--teacher_model", "t"])
    prediction, _ = parse(TaskDistillArguments, [*TASK, "--teacher_model", "t", "--pred_distill"])
    assert (intermediate.schedule, intermediate.warmup) == ("constant", 0.0)
    assert (prediction.schedule, prediction.warmup) == ("linear", 0.1)


def test_a_stated_schedule_and_warm_up_are_obeyed():
    words = [*TASK, *["--teacher_model", "t", "--lr_schedule", "linear", "--warmup_proportion", "0.2"]]
    arguments, problems = parse(TaskDistillArguments, words)
    assert problems == []
    assert (arguments.schedule, arguments.warmup) == ("linear", 0.2)


def test_distillation_without_a_teacher_is_a_problem_but_evaluation_is_not():
    _, problems = parse(TaskDistillArguments, TASK)
    assert "--teacher_model DIR is missing" in problems[0]
    assert parse(TaskDistillArguments, [*TASK, "--do_eval"])[1] == []


@pytest.mark.parametrize("words", [[], ["--task_name", "sst-2", "--task_file", "t.yaml"]])
def test_exactly_one_task_must_be_named(words):
    _, problems = parse(FinetuneArguments, [*["--model", "m", "--data_dir", "d", "--output_dir", "o"], *words])
    assert problems == ["give one of --task_name and --task_file"]


def test_a_student_from_scratch_needs_a_tokenizer():
    words = ["--model", "4L_312", "--data_dir", "d", "--output_dir", "o", "--task_name", "sst-2", "--from_scratch"]
    _, problems = parse(FinetuneArguments, words)
    assert "--from_scratch needs --tokenizer" in problems[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pred_distill", "--projection", "shared"], "--projection shared"),
        (["--pred_distill", "--layer_map", "last"], "--layer_map last"),
        (["--temperature", "2"], "--temperature 2.0 is for --pred_distill"),
        (["--predict_split", "test"], "--predict_split test is for --do_eval; leave it out of the intermediate stage"),
        (["--label_weight", "1"], "--label_weight 1.0 is for --pred_distill"),
        (["--pred_distill", "--hidden_weight", "0"], "--hidden_weight 0.0 is for the intermediate stage"),
        (["--attention_weight", "-1"], "--attention_weight is -1.0; it must not be negative"),
        (["--attention_weight", "0", "--hidden_weight", "0", "--embedding_weight", "0"], "nothing is learned"),
        (["--pred_distill", "--prediction_weight", "0"], "nothing is learned"),
    ],
)
def test_flags_that_a_stage_would_ignore_or_could_learn_nothing_from_are_refused(words, said):
    _, problems = parse(TaskDistillArguments, [*TASK, "--teacher_model", "t", *words])
    assert len(problems) == 1
    assert said in problems[0]


def test_a_student_is_given_its_start_in_general_distillation_without_weights_of_its_own_alone():
    _, problems = parse(GeneralDistillArguments, [*GENERAL, "--continue_train", "--init", "svd"])
    assert "--init svd and --continue_train contradict" in problems[0]
    _, problems = parse(TaskDistillArguments, [*TASK, "--teacher_model", "t", "--init", "svd"])
    assert "unknown argument '--init'" in problems[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--task_name rte --glue_dir g", None),
        ("--task_file t.yaml --data_dir d", None),
        ("--task_name rte,qqp --glue_dir g", "--model m: several tasks need several models; write {task} where"),
        ("--task_name rte --data_dir d", "give --task_name with --glue_dir, which holds a folder for each task"),
        ("--task_name rte --glue_dir g --task_file t.yaml", "not both"),
        ("--task_file t.yaml --data_dir d --submission", "--submission is for the benchmark's tasks"),
    ],
)
def test_models_are_evaluated_on_tasks_of_glue_or_on_one_of_the_users_own(words, said):
    words = [*words.split(), "--model", "m", "--output_dir", "o"]
    _, problems = parse_arguments(EvaluateArguments, words, "evaluate_glue.py")
    assert (problems == []) if said is None else (said in problems[0])
