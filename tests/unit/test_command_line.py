from __future__ import annotations

import errno
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


def test_a_message_without_end_is_cut_in_its_middle(monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def fail_at_length() -> None:
        raise DataError(f"begin {'x' * 100_000} do this")

    with pytest.raises(SystemExit):
        run_command(fail_at_length)
    said = capsys.readouterr().err
    assert len(said) < 8_100
    assert said.startswith("error: begin xxx")
    assert "(92,014 characters left out)" in said
    assert said.endswith("xxx do this\n")


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


@pytest.mark.parametrize("fault", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor")], ids=repr)
def test_a_fault_keeps_its_traceback(fault):
    def faulty() -> None:
        raise fault

    with pytest.raises(type(fault)):
        run_command(faulty)


def read_what_is_not_there() -> None:
    open("/nowhere/manifest.json").close()


def test_a_file_that_the_system_refuses_ends_with_2_and_its_name(capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        run_command(read_what_is_not_there)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: '/nowhere/manifest.json' cannot be read or written: No such file or directory; give a path that exists"
    )


def test_a_file_that_is_refused_to_one_rank_alone_is_told_by_that_rank(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(command_line.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended:
        run_command(read_what_is_not_there)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: rank 3: '/nowhere/manifest.json' cannot be")


def test_a_path_whose_bytes_are_no_text_is_printed():
    program = r"from tinybert_ds.command_line import *; run_command(lambda: print('a\udcff'))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "a\\udcff\n")


def test_a_path_with_a_nul_character_is_a_mistake_of_the_user(capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: open("a\0b").close())
    assert ended.value.code == 2
    assert "a path holds a NUL character" in capsys.readouterr().err
