"""Checkpoints of a stub engine on one rank: which are kept, which are found, what a full disk leaves."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from tinybert_ds.engine.checkpoints import store as checkpoint
from tinybert_ds.engine.checkpoints.best_student import best_directory, keep_best
from tinybert_ds.engine.checkpoints.store import Checkpoints, TrainingState
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import CheckpointError

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


class Writer:
    """Writes one file; or as much of it as there is room for."""

    full = False

    def save(self, state_dict, path):
        """Write the state."""
        Path(path).write_text("half" if self.full else "whole")
        if self.full:
            raise OSError(28, "No space left on device")


class Engine:
    """As much of DeepSpeed's engine as a checkpoint needs."""

    def __init__(self) -> None:
        self.checkpoint_engine = Writer()

    def _copy_recovery_script(self, save_path) -> None:
        pass

    def get_data_types(self):
        """Return the dtypes of weights and gradients."""
        return torch.float32, torch.float32

    def zero_optimization_stage(self) -> int:
        """Return the stage."""
        return 0

    def save_checkpoint(self, save_dir, *, tag, client_state, save_latest) -> None:
        """Write one file, which is the state."""
        (Path(save_dir) / tag).mkdir(parents=True)
        self.checkpoint_engine.save(client_state, Path(save_dir) / tag / "state.pt")
        self.state = client_state

    def load_checkpoint(self, load_dir, *, tag):
        """Return a state by which a test sees what was loaded."""
        return tag, {**vars(TrainingState()), "step": int(tag.removeprefix("step-"))}


@pytest.fixture
def checkpoints(tmp_path, one_rank_group):
    return Checkpoints(tmp_path / "checkpoints", ALONE, total_limit=2)


def save(checkpoints, engine, step, best_step=None):
    checkpoints.save(engine, TrainingState(step=step, best_step=best_step))
    checkpoints.prune()


def keep(checkpoints, step):
    def export(directory):
        directory.mkdir(parents=True)
        (directory / "model").write_text(f"student of step {step}")

    keep_best(checkpoints.directory, step, export, ALONE)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir() if path.is_dir())


def test_the_limit_takes_the_oldest_and_no_best_student_that_a_checkpoint_names(checkpoints):
    engine = Engine()
    keep(checkpoints, 1)
    for step in (2, 3, 4):
        save(checkpoints, engine, step, best_step=1)
    assert names(checkpoints) == ["best-00000001", "step-00000003", "step-00000004"]
    keep(checkpoints, 5)
    save(checkpoints, engine, 6, best_step=5)
    assert names(checkpoints) == ["best-00000001", "best-00000005", "step-00000004", "step-00000006"]
    save(checkpoints, engine, 7, best_step=5)
    assert names(checkpoints) == ["best-00000005", "step-00000006", "step-00000007"]


def test_the_limit_never_takes_the_last_complete_checkpoint_whatever_torn_ones_are_newer(tmp_path, one_rank_group):
    checkpoints = Checkpoints(tmp_path / "checkpoints", ALONE, total_limit=1)
    save(checkpoints, Engine(), 3)
    (checkpoints.directory / "step-00000004").mkdir()
    checkpoints.prune()
    assert checkpoints.complete_tags() == ["step-00000003"]


def test_a_best_student_that_no_checkpoint_names_goes_when_the_run_is_resumed(checkpoints):
    engine = Engine()
    keep(checkpoints, 2)
    save(checkpoints, engine, 3, best_step=2)
    keep(checkpoints, 5)  # and the run is killed before it saves
    (checkpoints.directory / ".best-00000006.unfinished").mkdir()
    assert checkpoints.resume(engine, "auto").step == 3
    assert names(checkpoints) == ["best-00000002", "step-00000003"]
    keep(checkpoints, 5)
    assert (best_directory(checkpoints.directory, 5) / "model").read_text() == "student of step 5"


def test_what_killed_launches_have_left_goes_when_the_run_is_resumed_and_nothing_else(checkpoints):
    engine = Engine()
    save(checkpoints, engine, 3)
    keep(checkpoints, 4)
    save(checkpoints, engine, 5, best_step=4)
    out = checkpoints.directory.parent
    kept = [checkpoints.directory / "step-00000006", out / "tensorboard"]  # a newer torn one is told about instead
    left = [checkpoints.directory / name for name in ("step-00000002", "step-00000004", ".universal-step-00000003")]
    left.append(out / ".saving-abc")
    for directory in kept + left:
        directory.mkdir()
        (directory / "part.pt").touch()
    assert checkpoints.resume(engine, "auto").step == 5
    assert names(checkpoints) == ["best-00000004", "step-00000003", "step-00000005", "step-00000006"]
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "tensorboard"]


def test_a_checkpoint_whose_best_student_is_gone_is_not_complete(checkpoints):
    save(checkpoints, Engine(), 1)
    keep(checkpoints, 2)
    save(checkpoints, Engine(), 3, best_step=2)
    assert checkpoints.complete_tags() == ["step-00000001", "step-00000003"]
    (best_directory(checkpoints.directory, 2) / "model").unlink()
    best_directory(checkpoints.directory, 2).rmdir()
    assert checkpoints.complete_tags() == ["step-00000001"]


def test_a_full_disk_is_a_message_and_leaves_the_checkpoints_before_and_no_torn_one(checkpoints):
    engine = Engine()
    save(checkpoints, engine, 3)
    engine.checkpoint_engine.full = True
    with pytest.raises(CheckpointError, match=r"No space left on device; \d+ MB were free.*step-00000003: make room"):
        checkpoints.save(engine, TrainingState(step=4))
    assert names(checkpoints) == ["step-00000003"]
    assert isinstance(engine.checkpoint_engine, Writer)
    assert (checkpoints.directory / "latest").read_text() == "step-00000003"


def test_a_checkpoint_whose_bytes_have_changed_is_passed_over_and_said_so(checkpoints, caplog):
    engine = Engine()
    for step in (3, 5):
        save(checkpoints, engine, step)
    state = checkpoints.directory / "step-00000005" / "state.pt"
    state.write_text("whale")  # as long as before
    with pytest.raises(CheckpointError, match=r"step-00000005 is damaged: state\.pt is not what was written; take an"):
        checkpoints.resume(engine, str(state.parent))
    assert checkpoints.resume(engine, "auto").step == 3
    assert f"checkpoint {state.parent} is damaged: state.pt is not what was written" in caplog.text
    assert "step-00000005 is incomplete; falling back to step-00000003" in caplog.text
    save(checkpoints, engine, 5)
    assert checkpoints.resume(engine, "auto").step == 5


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_given_up(checkpoints, monkeypatch):
    for step in (3, 5):
        save(checkpoints, Engine(), step)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_hash", fail)
    with pytest.raises(CheckpointError, match=r"step-00000005: \S+ cannot be read \(Input/output error\)"):
        checkpoints.resume(Engine(), "auto")
    monkeypatch.undo()
    assert checkpoints.resume(Engine(), "auto").step == 5


def test_a_fresh_run_says_that_there_is_no_checkpoint_and_starts_at_0(checkpoints):
    assert checkpoints.last_good() == "There is no checkpoint yet"
    assert checkpoints.resume(Engine(), "auto") == TrainingState()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"layout"', '"lay-out"'),
        lambda text: text.replace('"best_step": null', '"best_step": 7'),
        lambda text: text.replace('"xxh3": {', '"xxh3": {}, "was": {'),
        lambda text: "[" * 100_000,
    ],
)
def test_of_a_damaged_record_the_checkpoint_before_is_taken(checkpoints, damage):
    for step in (1, 2):
        save(checkpoints, Engine(), step)
    record = checkpoints.directory / "step-00000002" / "complete.json"
    record.write_text(damage(record.read_text()))
    assert checkpoints.complete_tags() == ["step-00000001"]
    assert checkpoints.resume(Engine(), "auto").step == 1
