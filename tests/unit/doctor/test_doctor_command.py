"""`python -m tinybert_ds.doctor` on this machine."""

from __future__ import annotations

import json
import shutil

import pytest

from data_tools import trim_vocabulary
from tests.support.models import config_directory, tiny_model
from tests.support.vocabularies import KINDS, sentences
from tinybert_ds.arguments import parse
from tinybert_ds.arguments.doctor import DoctorArguments
from tinybert_ds.doctor import __main__ as doctor
from tinybert_ds.doctor.job import sequence_length
from tinybert_ds.engine.ds_config import default_config_path
from tinybert_ds.errors import ConfigError
from tinybert_ds.launch.remote import Answer


@pytest.fixture
def run(capsys):
    """Return a function from a command line to the exit code and what was printed."""

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            doctor.main([str(word) for word in words])
        return ended.value.code, capsys.readouterr().out

    return command


def test_a_job_that_can_run_is_told_its_config_and_memory(inputs, run, tmp_path):
    words = ["--teacher_model", inputs / "teacher", "--student_model", inputs / "student", "--ranks", 2]
    code, output = run(*words, "--pregenerated_data", f"{inputs / 'shards'}=0.7", "--output_dir", tmp_path / "out")
    assert code == 0, output
    assert "120 documents" in output
    assert "layer map [0, 2, 4]" in output
    assert default_config_path("cpu", fp16=False).name in output
    assert "no problems found" in output


def test_a_pair_is_looked_at_as_the_job_takes_it(inputs, run, tmp_path):
    config_directory(tmp_path / "student", num_attention_heads=3)
    words = ["--teacher_model", inputs / "teacher", "--student_model", tmp_path / "student"]
    assert "attention heads" in run(*words)[1]
    code, output = run(*words, "--attention_loss", "relations", "--layer_map", "last")
    assert code == 0, output
    assert "layer map [0, 3, 4]" in output


def test_a_student_of_a_part_of_the_vocabulary_fits_the_tokeniser_that_is_named(run, tmp_path):
    whole = KINDS["WordPiece"]()
    special = {"vocab_size": len(whole), "pad_token_id": whole.pad_token_id}
    tiny_model(**special).save_pretrained(tmp_path / "teacher")
    whole.save_pretrained(tmp_path / "teacher")
    (tmp_path / "corpus.txt").write_text("\n".join(sentences(100)) + "\n", encoding="utf-8")
    words = ["--model", tmp_path / "teacher", "--corpus", tmp_path / "corpus.txt", "--keep", 200]
    trim_vocabulary.main([str(word) for word in [*words, "--output_dir", tmp_path / "part"]])
    config_directory(tmp_path / "student", vocab_size=200)
    words = ["--teacher_model", tmp_path / "teacher", "--student_model", tmp_path / "student"]
    assert "vocabulary has 200 entries" in run(*words)[1]
    code, output = run(*words, "--student_tokenizer", tmp_path / "part")
    assert code == 0, output


def test_memory_is_that_of_samples_as_long_as_training_takes_them(inputs, tmp_path):
    for words, length in (([], 64), (["--max_seq_length", "512"], 512), (["gone"], 64)):
        given = ["--pregenerated_data", str(inputs / "shards"), *words]
        assert sequence_length(parse(DoctorArguments, given)) == length
    assert sequence_length(parse(DoctorArguments, [])) == 128


def test_everything_that_keeps_the_job_from_running_is_said_at_once(inputs, run, tmp_path):
    (tmp_path / "shards").mkdir()
    config_directory(tmp_path / "student", num_attention_heads=3)
    words = ["--teacher_model", inputs / "teacher", "--student_model", tmp_path / "student"]
    words += ["--pregenerated_data", tmp_path / "shards", "--train_batch_size", 7, "--ranks", 2]
    code, output = run(*words)
    assert code == 1
    assert output.count("PROBLEM") == 3  # shards without a manifest, heads that differ, a batch that does not divide
    assert output.count("->") >= 1
    assert "3 problem(s)" in output


def test_a_student_whose_padding_is_a_word_of_the_tokeniser_is_a_problem_although_its_teacher_says_the_same(
    inputs, run, tmp_path
):
    teacher = shutil.copytree(inputs / "teacher", tmp_path / "teacher")
    content = json.loads((teacher / "config.json").read_text()) | {"pad_token_id": 7}
    (teacher / "config.json").write_text(json.dumps(content))
    config_directory(tmp_path / "student", pad_token_id=7)
    code, output = run("--teacher_model", teacher, "--student_model", tmp_path / "student")
    assert code == 1
    assert "pad_token_id" in output


def test_an_input_that_is_not_there_is_one_problem(inputs, run, tmp_path):
    words = ["--teacher_model", tmp_path / "gone", "--student_model", inputs / "student"]
    code, output = run(*words, "--pregenerated_data", tmp_path / "no_shards")
    assert code == 1
    assert output.count("PROBLEM") == 2, output
    assert "2 problem(s)" in output


@pytest.mark.slow
def test_a_host_that_does_not_answer_is_a_problem_with_its_fix(run, tmp_path, monkeypatch):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("localhost slots=1\nno-such-host.invalid slots=1\n")
    code, output = run("--hostfile", hostfile)
    assert code == 1
    assert "no-such-host.invalid cannot run" in output
    assert "password-less ssh" in output
    assert "localhost, 1 rank(s)" in output  # the others are looked at all the same


@pytest.mark.parametrize("said", ["", "Welcome to node2", "[]", '{"paths": {}}', "[" * 100_000])
def test_a_host_that_answers_something_else_is_a_problem_and_no_traceback(run, tmp_path, monkeypatch, said):
    monkeypatch.setattr(doctor, "run_everywhere", lambda hosts, *_, **__: [Answer(hosts[0].name, 0, said, "")])
    (tmp_path / "hostfile").write_text("node2 slots=1\n")
    code, output = run("--hostfile", tmp_path / "hostfile")
    assert code == 1
    assert "node2 was asked for its facts by ssh and says" in output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1,", "is no JSON document"),
        ("[" * 100_000, "is no JSON document: brackets within brackets"),
        ("[]", "holds a list"),
        ('{"zero_optimization": 3}', "has a section zero_optimization, bf16 or fp16 of another shape"),
        ('{"zero_optimization": {"stage": "x"}}', "has a section zero_optimization, bf16 or fp16 of another shape"),
    ],
)
def test_a_config_that_is_none_is_said_instead_of_a_traceback(content, message, tmp_path):
    (tmp_path / "ds.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        doctor.main(["--deepspeed_config", str(tmp_path / "ds.json")])
