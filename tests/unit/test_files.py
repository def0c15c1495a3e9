from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

import tinybert_ds
from tinybert_ds.errors import FileError
from tinybert_ds.files import file_error, write_atomically


def told(error: OSError) -> str:
    found = file_error(error)
    assert isinstance(found, FileError)
    return str(found)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOENT, "give a path that exists"),
        (errno.EACCES, "give the right"),
        (errno.EISDIR, "give the path of a file"),
        (errno.ENOTDIR, "a part of the path is a file"),
        (errno.ENAMETOOLONG, "give a shorter one"),
        (errno.EROFS, "can only be read"),
        (errno.ENOSPC, "MB are free there); make room"),
        (errno.EDQUOT, "MB are free there); make room"),
        (errno.EIO, "the disk or its server fails"),
    ],
)
def test_what_the_system_says_of_a_named_file_is_told_with_what_to_do(number, remedy):
    message = told(OSError(number, os.strerror(number), "/data/manifest.json"))
    assert message.startswith(f"'/data/manifest.json' cannot be read or written: {os.strerror(number)}")
    assert remedy in message


def test_both_names_of_a_move_are_told():
    assert told(OSError(errno.EACCES, "no", "a", None, "b")).startswith("'a' -> 'b' cannot be")


def test_a_full_disk_is_told_although_a_write_does_not_name_its_file():
    assert told(OSError(errno.ENOSPC, "No space left on device")).startswith("a file cannot be read or written: No sp")


def test_an_error_of_a_library_that_gives_a_sentence_alone_is_told():
    assert "a file cannot be read or written: Permission denied (os error 13); this user" in told(
        PermissionError("Permission denied (os error 13)")
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBADF, "Bad file descriptor"),
        OSError(errno.EINVAL, "Invalid argument", "/data/x"),
        OSError(errno.ENOENT, "No such file or directory"),
        OSError(errno.ENOENT, "No such file", str(Path(tinybert_ds.__file__).parent / "students" / "gone.json")),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        OSError("a sentence of a library"),
    ],
    ids=repr,
)
def test_faults_of_the_program_are_nobody_elses(error):
    assert file_error(error) is None


def test_an_endless_path_does_not_fill_the_message():
    message = told(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))
    assert len(message) < 600
    assert "(5,000 characters)" in message


def test_a_small_file_that_cannot_be_written_is_named_and_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_atomically(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("run.json", "old")]


def test_a_name_that_is_too_long_to_be_written_is_told_by_that_name(tmp_path):
    path = tmp_path / ("x" * 255)  # allowed, but there is no room for what its temporary name has more
    with pytest.raises(OSError, match="too long") as caught:
        write_atomically(path, "new")
    assert caught.value.filename == str(path)


def test_bytes_of_a_path_that_are_no_text_are_spelled_out_in_what_is_written(tmp_path):
    write_atomically(tmp_path / "card.md", f"# é-{os.fsdecode(bytes([255]))}\n")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == "# é-\\udcff\n"
