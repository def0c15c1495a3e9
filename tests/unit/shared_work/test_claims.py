"""Tasks that processes take from each other's hands."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tinybert_ds.errors import ConfigError
from tinybert_ds.shared_work.claims import Claims, describe_differences

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from tinybert_ds.shared_work.claims import Claims
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
    real = fcntl.flock

    def remove_first(descriptor: int, operation: int) -> None:
        (tmp_path / "task.json").unlink()  # between opening and locking, the owner before has finished
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with Claims(tmp_path).take("task", again=True) as claim:
        assert claim is None


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ConfigError, match=r"cannot lock .*Function not implemented.*-o flock"),
        Claims(tmp_path).take("x"),
    ):
        pass


def test_shared_tasks_are_done_once_and_those_of_others_are_waited_for(tmp_path):
    claims, done = Claims(tmp_path), []
    names = [f"task-{number}" for number in range(20)]

    def do(name: str) -> dict[str, str]:
        done.append(name)
        time.sleep(0.002)
        return {"of": name}

    threads = [threading.Thread(target=claims.share, args=(names, do)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(done) == sorted(names)
    assert [claims.record(name) for name in names] == [{"of": name} for name in names]


def test_sharing_ends_when_it_is_told_to_and_when_the_directory_has_gone(tmp_path):
    done = []
    Claims(tmp_path).share(["a", "b", "c"], lambda name: done.append(name) or {}, stopped=lambda: len(done) == 2)
    assert done == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        Claims(tmp_path / "gone").share(["a"], lambda name: {})


def test_what_differs_is_told_in_words():
    assert describe_differences({"seed": 1, "same": 0}, {"seed": 2, "same": 0}) == "seed is 1 there and 2 now"
    assert describe_differences({"a": [1]}, {"a": [1]}) == ""
    assert len(describe_differences({"a": "x" * 10_000}, {})) < 300


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b'{"a": 1, "a": 2}', b"\xff", b'{"a"'])
def test_a_record_that_is_none_is_an_unfinished_task(tmp_path, content):
    (tmp_path / "task.json").write_bytes(content)
    claims = Claims(tmp_path)
    assert claims.record("task") is None
    with claims.take("task") as claim:
        assert claim is not None
