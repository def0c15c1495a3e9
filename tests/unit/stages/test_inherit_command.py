"""The command that starts students from their teacher, on a tiny teacher with shards and a task."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForTokenClassification

from tests.support.fixtures import with_student
from tests.support.models import config_directory, model_directory, tiny_config, write_tokenizer
from tests.support.run_records import write_run
from tests.support.runs import read_metrics, run_ranks
from tinybert_ds.arguments.inherit import InheritArguments
from tinybert_ds.arguments.parsing import parse_arguments
from tinybert_ds.models.card import CARD_FILE
from tinybert_ds.models.inherit import Inheritance
from tinybert_ds.models.inherit.fit import LayerReport
from tinybert_ds.models.pretrained import load_classifier, load_encoder
from tinybert_ds.models.run_card import START_FILE, run_card, start_command
from tinybert_ds.models.saving import load_projections
from tinybert_ds.stages.inheritance import few_tokens, table


def words(inputs, output, *more):
    return ["--teacher_model", inputs / "teacher", "--student_model", inputs / "student", "--output_dir", output, *more]


@pytest.fixture(scope="module")
def started(inputs, tmp_path_factory):
    """Return the directory of a student that was started on shards, its arguments and what the command printed."""
    folder = tmp_path_factory.mktemp("started")
    arguments = words(inputs, folder / "out", "--pregenerated_data", inputs / "shards", "--teacher_dtype", "fp32")
    return folder / "out", arguments, run_ranks("inherit", arguments, log=folder / "log").check().output


def test_a_student_directory_is_written_with_its_projections_and_a_table(started):
    directory, _, output = started
    assert load_encoder(directory, role="student").config.hidden_size == 24
    projections = load_projections(directory)
    assert sorted(projections) == [f"{state}.{kind}" for state in range(3) for kind in ("bias", "weight")]
    record = json.loads((directory / START_FILE).read_text())
    assert record["finished"]
    assert all(0.3 < share <= 1 for share in record["explained"]["states"])
    assert f"{100 * record['explained']['states'][2]:.1f} %" in output


def test_the_student_has_a_card_with_its_command_and_what_its_layers_explain(started):
    directory, _, output = started
    card = ModelCard.load(directory / CARD_FILE)
    assert card.data.pipeline_tag == "feature-extraction"
    assert "no step of training was taken yet" in card.text
    command = json.loads((directory / START_FILE).read_text())["command"]
    assert command in card.text
    assert command.split() == [
        *("deepspeed", "launchers/inherit_student.py", "\\", "--teacher_model", "teacher", "\\"),
        *("--student_model", "student", "\\", "--pregenerated_data", "shards", "\\", "--teacher_dtype", "fp32"),
    ]
    lines = card.text.partition("## What its layers explain")[2].splitlines()
    assert next(line for line in output.splitlines() if line.startswith("  state")) in lines
    assert str(directory.parent) not in card.text


@pytest.mark.parametrize("stage", ["general_distill", "task_distill joint"])
def test_a_run_that_builds_on_it_has_its_command_in_the_card(started, tmp_path, stage):
    directory, _, _ = started
    student = [str(directory)] if stage == "general_distill" else str(directory)  # which may have several
    run = tmp_path / "run"
    write_run(run, stage=stage, arguments={"student_model": student, "max_steps": 3}, finished={})
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **record["launches"][-1]}))
    text = run_card(run, {}).sections["How it was made"]
    assert 0 < text.index("inherit_student.py") < text.index(f"{stage.split()[0]}.py")


def test_the_command_names_a_shipped_student_as_it_was_given():
    words = ["--teacher_model", "t", "--student_model", "4L_312", "--pregenerated_data", "s", "--output_dir", "o"]
    arguments, problems = parse_arguments(InheritArguments, words, "x")
    assert not problems
    assert start_command(arguments).replace("\\\n   ", "").split()[2:] == words[:-2]


def test_the_same_command_once_more_has_nothing_to_do(started, tmp_path):
    directory, arguments, _ = started
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert "nothing to do" in run_ranks("inherit", arguments, log=tmp_path / "log").check().output
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_a_command_that_was_interrupted_makes_the_same_student_when_repeated(started, inputs, tmp_path):
    directory, arguments, _ = started
    place = arguments.index("--output_dir")
    again = [*arguments[: place + 1], tmp_path / "out", *arguments[place + 2 :]]
    (tmp_path / "out").mkdir()
    record = json.loads((directory / START_FILE).read_text())
    unfinished = {"identity": record["identity"], "finished": False}
    (tmp_path / "out" / START_FILE).write_text(json.dumps(unfinished))
    run_ranks("inherit", again, log=tmp_path / "log").check()
    for name in ("model.safetensors", "projections.safetensors", START_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"finished": true}'])
def test_a_directory_with_a_record_that_is_none_is_refused(started, tmp_path, content):
    _, arguments, _ = started
    place = arguments.index("--output_dir")
    (tmp_path / START_FILE).write_text(content)
    again = [*arguments[: place + 1], tmp_path, *arguments[place + 2 :]]
    finished = run_ranks("inherit", again, log=tmp_path / "log")
    assert finished.returncode == 2
    assert START_FILE in finished.output


def test_another_student_is_not_written_over_it(started, tmp_path):
    _, arguments, _ = started
    finished = run_ranks("inherit", [*arguments, "--calibration_tokens", 77], log=tmp_path / "log")
    assert finished.returncode == 2
    assert "made with another calibration_tokens" in finished.output


@pytest.mark.parametrize(("more", "code"), [([], 0), (["notes.txt"], 2)])
def test_a_start_of_which_nothing_came_gives_way_to_another_one(started, tmp_path, more, code):
    directory, arguments, _ = started
    record = json.loads((directory / START_FILE).read_text())
    unfinished = {"identity": {**record["identity"], "teacher_dtype": "torch.float16"}, "finished": False}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / START_FILE).write_text(json.dumps(unfinished))
    for name in more:
        (tmp_path / "out" / name).write_text("mine")
    place = arguments.index("--output_dir")
    again = [*arguments[: place + 1], tmp_path / "out", *arguments[place + 2 :]]
    finished = run_ranks("inherit", again, log=tmp_path / "log")
    assert finished.returncode == code, finished.output
    assert ("made with another teacher_dtype" in finished.output) == bool(code)


def test_general_distillation_begins_with_lower_losses(started, general, one_rank, tmp_path):
    directory, *_ = started
    arguments = [*with_student(general, directory), "--continue_train", "--max_steps", 1]
    run_ranks("general_distill", [*arguments, "--output_dir", tmp_path / "out"], log=tmp_path / "log").check()
    first = read_metrics(tmp_path / "out")[0]
    assert first["attention_loss"] < 0.5 * one_rank[0]["attention_loss"]
    assert first["hidden_loss"] < 0.5 * one_rank[0]["hidden_loss"]


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one(started, tmp_path):
    directory, arguments, _ = started
    place = arguments.index("--output_dir")
    again = [*arguments[: place + 1], tmp_path / "out", *arguments[place + 2 :]]
    run_ranks("inherit", again, world_size=2, log=tmp_path / "log").check()
    for name in ("model.safetensors", "projections.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()


def test_a_fine_tuned_teachers_student_has_its_head_in_the_order_of_the_tasks_labels(inputs, tmp_path):
    teacher = model_directory(tmp_path / "teacher", labels=["positive", "negative"])
    same = config_directory(tmp_path / "same", num_hidden_layers=4, hidden_size=48, intermediate_size=64)
    arguments = ["--teacher_model", teacher, "--student_model", same, "--output_dir", tmp_path / "out"]
    arguments += ["--data_dir", inputs / "task", "--task_name", "sst-2", "--teacher_dtype", "fp32"]
    finished = run_ranks("inherit", arguments, log=tmp_path / "log").check()
    assert "head   100.0 %" in finished.output
    student = load_classifier(tmp_path / "out", label_names=["negative", "positive"], role="student", head="required")
    own = load_classifier(teacher, label_names=["negative", "positive"], role="teacher", head="required")
    ids = torch.randint(5, 60, (20, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = own(input_ids=ids).logits.flip(1)
        torch.testing.assert_close(student(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_of_tags_gives_its_student_its_head(inputs, tmp_path):
    names = ("O", "B-PLACE", "I-PLACE")
    config = tiny_config()
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "teacher")
    write_tokenizer(tmp_path / "teacher")
    for split in ("train", "dev"):
        (tmp_path / f"{split}.conll").write_text("the O\ncity B-PLACE\n\nwe O\nsaw O\nriver B-PLACE\n\n" * 20)
    (tmp_path / "task.yaml").write_text(
        "target: tags\nfiles: {train: train.conll, dev: dev.conll}\ntext: 0\nlabel: -1\nscheme: BIO\n"
        'labels: [PLACE]\nseparator: " "\nmetric: tag_accuracy\nmax_seq_length: 24\n'
    )
    same = config_directory(tmp_path / "same", num_hidden_layers=4, hidden_size=48, intermediate_size=64)
    arguments = ["--teacher_model", tmp_path / "teacher", "--student_model", same, "--output_dir", tmp_path / "out"]
    arguments += ["--data_dir", tmp_path, "--task_file", tmp_path / "task.yaml", "--teacher_dtype", "fp32"]
    assert "head   100.0 %" in run_ranks("inherit", arguments, log=tmp_path / "log").check().output
    own, theirs = (AutoModelForTokenClassification.from_pretrained(tmp_path / name) for name in ("out", "teacher"))
    assert own.config.id2label == theirs.config.id2label
    torch.testing.assert_close(own.classifier.weight, theirs.classifier.weight, rtol=0, atol=1e-3)


def test_a_student_with_weights_keeps_them_in_part_and_gets_the_head_of_a_fine_tuned_teacher(started, inputs, tmp_path):
    directory, *_ = started
    teacher = model_directory(tmp_path / "teacher", labels=["negative", "positive"], seed=7)
    arguments = ["--teacher_model", teacher, "--student_model", directory, "--output_dir", tmp_path / "out"]
    arguments += ["--data_dir", inputs / "task", "--task_name", "sst-2", "--prior_weight", 1e6]
    finished = run_ranks("inherit", arguments, log=tmp_path / "log").check()
    assert "of its own states before" in finished.output
    own = load_classifier(tmp_path / "out", label_names=["negative", "positive"], role="student", head="required")
    before = load_encoder(directory, role="student").state_dict()
    for name, value in own.base_model.state_dict().items():
        if "pooler" not in name and value.is_floating_point():
            torch.testing.assert_close(value, before[name], rtol=1e-2, atol=1e-3)
    assert json.loads((tmp_path / "out" / START_FILE).read_text())["identity"]["prior_weight"] == 1e6


def test_several_students_go_to_directories_of_their_names(inputs, tmp_path):
    other = config_directory(tmp_path / "other", num_attention_heads=2, hidden_size=16)
    arguments = words(inputs, tmp_path / "out", "--student_model", other, "--pregenerated_data", inputs / "shards")
    output = run_ranks("inherit", arguments, log=tmp_path / "log").check().output
    assert load_encoder(tmp_path / "out" / "student", role="student").config.hidden_size == 24
    assert load_encoder(tmp_path / "out" / "other", role="student").config.hidden_size == 16
    assert "its heads are the teacher's" in output


def test_a_student_without_a_closed_form_is_refused_before_anything_is_written(inputs, tmp_path):
    wide = config_directory(tmp_path / "wide", hidden_size=96)
    arguments = ["--teacher_model", inputs / "teacher", "--student_model", wide, "--output_dir", tmp_path / "out"]
    finished = run_ranks("inherit", [*arguments, "--pregenerated_data", inputs / "shards"], log=tmp_path / "log")
    assert finished.returncode == 2
    assert "hidden_size 96 is larger than the teacher's 48" in finished.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give either --pregenerated_data with shards, or --data_dir"),
        (["--data_dir", "d"], "give either --pregenerated_data with shards, or --data_dir"),
        (["--task_name", "t"], "give either --pregenerated_data with shards, or --data_dir"),
        (["--pregenerated_data", "s", "--data_dir", "d", "--task_name", "t"], "give either --pregenerated_data"),
        (["--pregenerated_data", "s", "--calibration_tokens", "0"], "--calibration_tokens is 0; it must be at least 1"),
        (["--pregenerated_data", "s", "--seed", "-1"], "--seed is -1"),
        (["--pregenerated_data", "s", "--prior_weight", "0"], "--prior_weight is 0.0; it must be in (0, 1e+06]"),
        (["--pregenerated_data", "s", "--teacher_labels", "a,b"], "--teacher_labels is for a fine-tuned teacher"),
    ],
)
def test_flags_that_say_nothing_or_too_much_are_refused(more, said):
    basis = ["--teacher_model", "t", "--student_model", "s", "--output_dir", "o"]
    _, problems = parse_arguments(InheritArguments, [*basis, *more], "inherit_student.py")
    assert said in "\n".join(problems)


@pytest.mark.parametrize(("tokens", "said"), [(7680, None), (7679, "7,679 tokens are few for layers of 768 neurons")])
def test_a_text_that_is_short_for_the_students_layers_is_told(tokens, said):
    warning = few_tokens(tokens, 768)
    assert warning is None if said is None else str(warning).startswith(said)


def test_the_table_says_what_a_student_with_weights_keeps():
    found = Inheritance({}, (0.8, 0.75), (LayerReport(0.9, None, 0.7, (0, 1)),), None, 0.66)
    assert table(found, (0, 3))[2:] == [
        "  1      3                   75.0 %     90.0 %      own 70.0 %",
        "  of its own states before, 66.0 % were a linear map of its teacher's",
    ]


def test_the_table_says_what_each_layer_explains():
    found = Inheritance({}, (0.8, 0.75), (LayerReport(0.9, 0.85, 0.7, (2, 0)),), 0.97)
    assert table(found, (0, 3)) == [
        "  state  of the teacher  projection  attention  neurons  layer",
        "  0      0                   80.0 %",
        "  1      3                   75.0 %     90.0 %   85.0 % 70.0 %",
        "         its heads are the teacher's 2, 0",
        "  head   97.0 %",
    ]
