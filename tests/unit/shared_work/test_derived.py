import fcntl
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.shared_work import derived
from tinybert_ds.shared_work.derived import cache_home, map_array, obtain, save_array, try_lock


def read(directory: Path) -> str | None:
    path = directory / "content"
    return path.read_text() if path.is_file() else None


def write(text: str):
    return lambda directory: (directory / "content").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def die_while_building(directory: Path) -> None:
    def build(target: Path) -> None:
        (target / "part").write_text("half")
        os._exit(9)

    obtain(directory, read, build)


def test_what_is_there_is_read_and_not_made_again(tmp_path):
    assert obtain(tmp_path / "a", read, write("one")) == "one"
    assert obtain(tmp_path / "a", read, write("two")) == "one"


def test_what_cannot_be_read_is_made_anew(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rest").touch()
    assert obtain(tmp_path / "a", read, write("one")) == "one"
    assert names(tmp_path / "a") == ["content"]


def test_a_failed_build_leaves_nothing_and_raises_its_own_error(tmp_path):
    def fail(directory: Path) -> None:
        (directory / "content").write_text("half")
        raise DataError("line 3 is wrong")

    with pytest.raises(DataError, match="line 3 is wrong"):
        obtain(tmp_path / "a", read, fail)
    assert names(tmp_path) == []


def test_a_process_that_dies_while_it_builds_leaves_the_work_to_the_next(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=die_while_building, args=(tmp_path / "a",))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert names(tmp_path) == ["a.lock", "a.tmp"]
    assert obtain(tmp_path / "a", read, write("one")) == "one"
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["content"]


def test_of_many_that_ask_at_once_one_builds(tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "POLL_SECONDS", 0.005)
    builds, results = [], []

    def build(directory: Path) -> None:
        builds.append(1)
        time.sleep(0.05)
        write("one")(directory)

    askers = [threading.Thread(target=lambda: results.append(obtain(tmp_path / "a", read, build))) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert results == ["one"] * 8
    assert len(builds) == 1


def test_those_who_wait_take_over_when_the_head_start_is_over_and_nobody_builds(tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(derived, "HEAD_START_SECONDS", 0.1)
    begin = time.monotonic()
    assert obtain(tmp_path / "a", read, write("one"), first=False) == "one"
    assert time.monotonic() - begin >= 0.1


def test_a_lock_is_held_by_one_and_free_again_afterwards(tmp_path):
    with try_lock(tmp_path / "a") as first, try_lock(tmp_path / "a") as second:
        assert (first, second) == (True, False)
    with try_lock(tmp_path / "a") as third:
        assert third
    assert names(tmp_path) == []


def test_the_lock_of_a_file_that_its_owner_removed_is_none(tmp_path, monkeypatch):
    real = fcntl.flock

    def remove_and_lock(handle, operation):
        (tmp_path / "a.lock").unlink()  # between opening and locking, the owner before has finished
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with try_lock(tmp_path / "a") as locked:
        assert not locked


def test_derived_data_lives_beside_the_data_or_where_the_user_says(tmp_path, monkeypatch):
    assert cache_home(tmp_path, None) == tmp_path / ".tinybert_cache"
    assert cache_home(tmp_path, tmp_path / "own") == tmp_path / "own"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_home(tmp_path / "missing", None) == cache_home(None, None) == tmp_path / "user" / "tinybert_ds"
    assert {".tinybert_cache", "own", "user"} <= set(names(tmp_path))


def test_data_that_cannot_be_written_sends_derived_data_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    real = os.access  # a test that runs as root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "data" and real(path, mode))
    (tmp_path / "data").mkdir()
    assert cache_home(tmp_path / "data", None) == tmp_path / "user" / "tinybert_ds"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="another folder with --cache_dir"):
        cache_home(tmp_path, tmp_path / "file" / "below")


def test_a_full_disk_is_told_as_what_it_is(tmp_path):
    def build(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot write .* No space left on device; make room"):
        obtain(tmp_path / "a", read, build)


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:90], lambda c: c[:40] + b"('" + c[42:]])
def test_a_file_that_holds_no_array_is_one_kind_of_error(tmp_path, damage):
    path = tmp_path / "labels.npy"
    save_array(path, np.arange(5))
    assert map_array(path).tolist() == [0, 1, 2, 3, 4]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"labels\.npy holds no array"):
        map_array(path)
