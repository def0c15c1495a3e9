"""Tasks that processes take from each other's hands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.claims import Claims

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from data_tools.claims import Claims
with Claims(Path(sys.argv[1])).take("task") as claim:
    print("taken" if claim else "not taken", flush=True)
    time.sleep(60)
"""


def test_a_task_is_taken_once_and_finished_once(tmp_path):
    claims = Claims(tmp_path)
    with claims.take("task") as claim, claims.take("task") as second, claims.take("other") as other:
        assert claim is not None
        assert second is None
        assert other is not None
        assert claims.record("task") is None
        claim.finish({"x": [1, "ü"]})
    assert claims.record("task") == {"x": [1, "ü"]}
    with claims.take("task") as claim:
        assert claim is None


def test_a_finished_task_can_be_done_again(tmp_path):
    claims = Claims(tmp_path)
    for content in ("a long record", "short"):
        with claims.take("task", again=True) as claim:
            claim.finish({"x": content})
    assert claims.record("task") == {"x": "short"}


def test_a_task_given_up_or_torn_is_free_again(tmp_path):
    claims = Claims(tmp_path)
    with pytest.raises(ValueError, match="broken"), claims.take("task") as claim:
        raise ValueError("broken")
    (tmp_path / "task.json").write_bytes(b'{"x": [1,')
    assert claims.record("task") is None
    with claims.take("task") as claim:
        assert claim is not None


def test_the_task_of_a_process_that_dies_is_free_again(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "taken\n"
        with Claims(tmp_path).take("task") as claim:
            assert claim is None
        process.send_signal(signal.SIGKILL)
    with Claims(tmp_path).take("task") as claim:
        assert claim is not None


def test_a_directory_that_has_gone_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError), Claims(tmp_path / "gone").take("task"):
        pass


def test_a_task_whose_file_was_removed_while_waiting_is_not_given(tmp_path, monkeypatch):
    def remove_first(self: Claims, descriptor: int) -> bool:
        (tmp_path / "task.json").unlink()
        return True

    monkeypatch.setattr(Claims, "_lock", remove_first)
    with pytest.raises(FileNotFoundError), Claims(tmp_path).take("task", again=True):
        pass


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b'{"a": 1, "a": 2}', b"\xff", b'{"a"'])
def test_a_record_that_is_none_is_an_unfinished_task(tmp_path, content):
    (tmp_path / "task.json").write_bytes(content)
    claims = Claims(tmp_path)
    assert claims.record("task") is None
    with claims.take("task") as claim:
        assert claim is not None
