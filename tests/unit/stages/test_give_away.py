"""The cards and uploads of finished directories, and the repositories that are made for them at the start."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from tests.support.models import config_directory, model_directory
from tests.support.run_records import write_run
from tinybert_ds.arguments import FinetuneArguments
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.run.run import Session
from tinybert_ds.errors import ModelError
from tinybert_ds.stages import embed_distill, finetune, general_distill, start, task_distill
from tinybert_ds.stages.give_away import give_away, require_repositories

pytestmark = pytest.mark.usefixtures("one_rank_group")

ALONE = World(0, 1, 0, torch.device("cpu"))
OF_TASK = ("--data_dir", "d", "--task_name", "sst-2")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(start, "join", lambda log_level: ALONE)
    monkeypatch.setattr(start, "choose_float32_products", lambda device, onednn: None)


@pytest.fixture
def created(monkeypatch):
    """Return the repositories of a stand-in of the hub, which takes nothing for others."""
    names = []

    def upload_folder(self, *, repo_id, folder_path, **named):
        if repo_id not in names:
            raise LookupError(f"404: there is no {repo_id}")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **named: names.append(repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return names


def session_of(directory, **changes):
    arguments = FinetuneArguments(model="m", data_dir="d", output_dir=str(directory), **changes)
    return Session(arguments, ALONE, {}, "")


def finished(directory, **arguments):
    """Write a finished fine-tuning."""
    results = {"eval_accuracy": 0.75}
    write_run(directory, stage="finetune", arguments={"task_name": "sst-2", **arguments}, finished=results)
    record = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps(record | record["launches"][-1]))
    return directory


@pytest.mark.parametrize("names", [("out",), ("one", "two")])
def test_whatever_is_uploaded_goes_to_a_repository_that_was_made_at_the_start(tmp_path, created, names):
    directories = [finished(tmp_path / name) for name in names]
    session = session_of(tmp_path, push_to_hub="a/b")
    require_repositories(session, directories)
    assert created == (["a/b"] if len(names) == 1 else ["a/b-one", "a/b-two"])
    give_away(session, directories, None)
    assert len(created) == len(names)


def test_without_the_flag_the_hub_is_left_alone(tmp_path, created):
    require_repositories(session_of(tmp_path), [tmp_path])
    assert created == []


def test_several_students_get_their_repositories_before_the_data_is_opened(tmp_path, created, monkeypatch):
    def open_corpora(*arguments):
        raise LookupError("the data")

    monkeypatch.setattr(general_distill, "open_corpora", open_corpora)
    model_directory(tmp_path / "teacher")
    students = [word for name in ("one", "two") for word in ("--student_model", str(tmp_path / name))]
    for name in ("one", "two"):
        config_directory(tmp_path / name)
    words = ["--pregenerated_data", "d", "--teacher_model", str(tmp_path / "teacher"), *students, "--init", "random"]
    words += ["--max_seq_length", "64", "--output_dir", str(tmp_path / "out"), "--push_to_hub", "a/b"]
    with pytest.raises(LookupError, match="the data"):
        general_distill.main(words)
    assert created == ["a/b-one", "a/b-two"]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (finetune, ["--model", "m", *OF_TASK]),
        (finetune, ["--model", "m", *OF_TASK, "--search"]),
        (task_distill, ["--teacher_model", "t", "--student_model", "s", *OF_TASK]),
        (embed_distill, ["--teacher_model", "t", "--student_model", "s", "--texts", "x.txt"]),
    ],
)
def test_a_hub_out_of_reach_is_told_of_before_any_model_is_looked_for(stage, words, tmp_path):
    with pytest.raises(ModelError, match=r"--push_to_hub a/b: the hub cannot be reached .*no work was begun"):
        stage.main([*words, "--output_dir", str(tmp_path / "out"), "--push_to_hub", "a/b"])  # the tests are offline


def test_a_search_gets_the_card_of_the_trial_that_it_took_with_what_its_own_command_says(tmp_path):
    out = tmp_path / "out"
    flags = {"search": True, "search_seeds": [1, 2], "max_steps": 3}
    for seed in (1, 2):
        finished(out / f"lr3e-05-seed{seed}", **flags, seed=seed, learning_rate=3e-5)
    (out / "search.json").write_text(json.dumps({"taken": {"learning_rate": 3e-5, "seed": 2}}))
    (out / "search.md").write_text("Mean and deviation over 2 seeds\n")
    session = session_of(out, search=True, license="mit", languages=["en"], datasets=["a/data"])
    task = SimpleNamespace(splits={"dev": range(100)}, spec=SimpleNamespace(eval_splits=("dev",)))
    give_away(session, [out], task)
    text = (out / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.language, data.datasets, data.model_name) == ("mit", ["en"], ["a/data"], "out")
    assert "| sst-2 | dev | 100 | accuracy | 0.7500 |" in text
    assert "--seed 2" in text
    assert "--learning_rate 3e-05" in text
    assert "--search" not in text, "a command with a rate of its own and --search would be refused"
    assert "Mean and deviation over 2 seeds" in text


def test_the_card_of_a_finished_run_says_what_the_same_command_says_later(tmp_path):
    directory = finished(tmp_path / "out")
    give_away(session_of(directory), [directory], None)
    assert "license" not in ModelCard((directory / "README.md").read_text()).data.to_dict()
    give_away(session_of(directory, license="mit"), [directory], None)
    assert ModelCard((directory / "README.md").read_text()).data.license == "mit"
