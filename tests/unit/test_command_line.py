from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tinybert_ds import command_line
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import DataError


def fail() -> None:
    raise DataError("no such file: 'x'")


@pytest.mark.parametrize("local_rank", [None, "0"])
def test_a_user_error_is_printed_and_ends_with_2(monkeypatch, capsys, local_rank):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(command_line.time, "sleep", lambda seconds: pytest.fail("rank 0 must not wait"))
    with pytest.raises(SystemExit) as ended:
        run_command(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such file: 'x'\n"


def test_other_local_ranks_wait_and_stay_silent(monkeypatch, capsys):
    waited = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(command_line.time, "sleep", waited.append)
    with pytest.raises(SystemExit) as ended:
        run_command(fail)
    assert ended.value.code == 2
    assert waited == [command_line.SIBLING_DELAY_SECONDS]
    assert capsys.readouterr().err == ""


def test_the_time_since_the_start_has_the_imports_in_it():
    program = "import time; time.sleep(0.4); from tinybert_ds.command_line import *; print(seconds_since_start())"
    begin = time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.4 < float(finished.stdout) < time.perf_counter() - begin + 0.02  # the start is known to a hundredth


def test_an_interrupt_ends_with_130():
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command(interrupted)
    assert ended.value.code == 130


def test_a_fault_keeps_its_traceback():
    def faulty() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(faulty)
