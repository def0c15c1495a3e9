"""Nothing is unpickled but what this user's own run has written."""

from __future__ import annotations

import json
import os
import pickle

import pytest

from tests.support.runs import run_ranks
from tinybert_ds.engine.checkpoints.ownership import require_own_files
from tinybert_ds.errors import CheckpointError

MANIFEST = "complete.json"


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "step-00000001"
    directory.mkdir()
    (directory / "state.pt").write_bytes(b"weights")
    layout = {"world_size": 1, "zero_stage": 0, "dtype": "float32"}
    record = {"files": {"state.pt": 7}, "xxh3": {}, "layout": layout, "best_step": None}
    (directory / MANIFEST).write_text(json.dumps(record))
    return directory


def test_a_checkpoint_of_ones_own_is_trusted(checkpoint):
    require_own_files(checkpoint, MANIFEST)


def test_files_that_the_manifest_does_not_list_are_named(checkpoint):
    (checkpoint / "deeper").mkdir()
    (checkpoint / "deeper" / "more.pt").touch()
    (checkpoint / "mp_rank_01_model_states.pt").touch()
    with pytest.raises(CheckpointError) as caught:
        require_own_files(checkpoint, MANIFEST)
    assert "deeper/more.pt is not one of its files" in str(caught.value)
    assert "mp_rank_01_model_states.pt is not one of its files" in str(caught.value)


def test_a_link_in_the_place_of_a_file_is_refused(checkpoint, tmp_path):
    (checkpoint / "state.pt").rename(tmp_path / "elsewhere")
    (checkpoint / "state.pt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"state\.pt is a link"):
        require_own_files(checkpoint, MANIFEST)


def test_a_checkpoint_of_another_user_is_refused(checkpoint, monkeypatch):
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(CheckpointError, match=f"state.pt belongs to user {own}, not to {own + 1}"):
        require_own_files(checkpoint, MANIFEST)


@pytest.mark.slow
def test_a_pickle_that_was_put_into_a_runs_checkpoint_stops_the_run_before_it_is_read(general, tmp_path):
    arguments = [*general, "--eval_fraction", 0, "--save_steps", 2, "--output_dir", tmp_path / "out"]
    run_ranks("general_distill", [*arguments, "--max_steps", 2], log=tmp_path / "first").check()
    tag = tmp_path / "out" / "checkpoints" / "step-00000002"
    with (tag / "mp_rank_01_model_states.pt").open("wb") as handle:
        pickle.dump(Payload(tmp_path / "executed"), handle)
    stopped = run_ranks("general_distill", [*arguments, "--max_steps", 4], log=tmp_path / "second")
    assert stopped.returncode == 2
    assert "mp_rank_01_model_states.pt is not one of its files" in stopped.output
    assert not (tmp_path / "executed").exists()
