import json
import logging
import os
import shutil
from importlib.metadata import version

import pytest

from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.engine.watch.monitor import truncate_metrics
from tinybert_ds.errors import CheckpointError, ConfigError
from tinybert_ds.files import file_error

IDENTITY = {"stage": "general_distill", "seed": 1, "layer_map": (0, 2)}


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "out")
    directory.open(IDENTITY, resume="auto")
    directory.note_start(IDENTITY, {"world_size": 1})
    return directory


def test_the_same_run_is_opened_again(run):
    run.open(IDENTITY, resume="auto")


def test_a_directory_in_which_a_run_works_is_refused_until_that_run_is_gone(run):
    second = RunDirectory(run.path)
    with pytest.raises(CheckpointError, match=f"another run works in .* .process {os.getpid()} on "):
        second.open(IDENTITY, resume="auto")
    run.close()
    second.open(IDENTITY, resume="auto")


def test_a_directory_is_checked_before_all_of_the_identity_is_known_and_nothing_is_made(run, tmp_path):
    run.verify({"seed": 1}, resume="auto", whole=False)
    with pytest.raises(ConfigError, match="seed was 1, now 2"):
        run.verify({"seed": 2}, resume="auto", whole=False)
    RunDirectory(tmp_path / "new").verify({"seed": 2}, resume="auto", whole=False)
    assert not (tmp_path / "new").exists()


def test_what_an_earlier_run_had_and_this_one_has_no_more_makes_it_another_run(run):
    with pytest.raises(ConfigError, match="layer_map was "):
        run.open({"stage": "general_distill", "seed": 1}, resume="auto")


def test_a_stated_checkpoint_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of this run; complete ones in .*: none"):
        run.resolve_resume(str(run.path / "checkpoints" / "step-00000007"))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        RunDirectory(tmp_path / "new").resolve_resume("step-7")
    assert not (tmp_path / "new").exists()


def complete_checkpoint(run, step):
    path = run.path / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    layout = {"world_size": 1, "zero_stage": 0, "dtype": "float32"}
    record = {"files": {}, "xxh3": {}, "layout": layout, "best_step": None}
    (path / "complete.json").write_text(json.dumps(record))
    return path


def test_a_stated_checkpoint_is_gone_back_to_once_and_the_same_command_goes_on_from_there(run):
    older, newer = complete_checkpoint(run, 7), complete_checkpoint(run, 14)
    assert run.resolve_resume(str(older)) == str(older)
    run.note_start(IDENTITY, {"arguments": {"resume": str(older)}})
    assert run.resolve_resume(str(older)) == "auto"
    shutil.rmtree(older)  # as the limit of checkpoints does
    run.open(IDENTITY, resume=str(older))
    assert run.resolve_resume(str(older)) == "auto"
    shutil.rmtree(newer)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        run.resolve_resume(str(older))


def test_a_stated_checkpoint_is_gone_back_to_again_after_a_launch_that_did_not_name_it(run):
    older, newer = complete_checkpoint(run, 7), complete_checkpoint(run, 14)
    for resume in (str(older), "auto", str(newer)):
        run.note_start(IDENTITY, {"arguments": {"resume": resume}})
    assert run.resolve_resume(str(older)) == str(older)


def test_another_run_is_refused_with_what_differs(run):
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="seed was 1, now 2"):
        run.open({**IDENTITY, "seed": 2}, resume="auto")
    assert (run.path / "run.json").read_bytes() == before


def test_foreign_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        RunDirectory(tmp_path).open(IDENTITY, resume="auto")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_as_output_dir_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(tmp_path / "out").open(IDENTITY, resume="auto")


def test_an_output_dir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError) as refusal:
        RunDirectory(tmp_path / "file" / "out").open(IDENTITY, resume="auto")
    assert "file/out' cannot be read or written: Not a directory; a part of the path is a file" in str(
        file_error(refusal.value)
    )


def test_resume_never_refuses_a_directory_with_a_run(run):
    with pytest.raises(ConfigError, match="--resume is never"):
        run.open(IDENTITY, resume="never")


def test_a_damaged_run_json_is_a_checkpoint_error(run):
    (run.path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        run.open(IDENTITY, resume="auto")


def test_a_run_is_finished_only_for_the_steps_it_was_finished_with(run):
    assert run.finished_results(10) is None
    run.note_finish(10, {"eval_accuracy": 0.5})
    assert run.finished_results(10) == {"eval_accuracy": 0.5}
    assert run.finished_results(20) is None


def test_every_launch_is_recorded(run):
    run.note_start(IDENTITY, {"world_size": 2})
    record = json.loads((run.path / "run.json").read_text())
    assert [launch["world_size"] for launch in record["launches"]] == [1, 2]
    assert record["launches"][1]["versions"]["torch"] == version("torch")
    assert record["world_size"] == 2


def test_what_changed_since_the_last_launch_is_told_by_the_names_that_the_user_knows(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tinybert_ds")
    run = RunDirectory(tmp_path)
    first = {"arguments": {"max_steps": 10, "seed": 1}, "deepspeed_config": {"bf16": {"enabled": False}}}
    run.note_start(IDENTITY, {**first, "world_size": 1})
    by_a_launcher = {"arguments": {**first["arguments"], "local_rank": 0}}
    run.note_start(IDENTITY, {**first, **by_a_launcher, "world_size": 1})
    assert caplog.messages == []
    second = {"arguments": {"max_steps": 20, "seed": 1}, "deepspeed_config": {"bf16": {"enabled": True}}}
    run.note_start(IDENTITY, {**second, "world_size": 2, "from_step": 7})
    expected = "--max_steps was 10, now 20; deepspeed_config.bf16.enabled was False, now True; world_size was 1, now 2"
    assert caplog.messages == [f"since the last launch: {expected}"]


def test_truncating_metrics_drops_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 2.0}\n{"step": 30, "loss": 3.0}\n{"step": 4')
    truncate_metrics(path, 20)
    assert path.read_text() == '{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 2.0}\n'
