"""A disk that is full while a result is written."""

from __future__ import annotations

import errno
import resource

import pytest
import torch
from transformers import AutoTokenizer

from tests.support.models import tiny_model, write_tokenizer
from tinybert_ds.engine.ranks.lost_ranks import faults_reported
from tinybert_ds.engine.ranks.process_group import World, run_on_main, write_on_main
from tinybert_ds.errors import CheckpointError, FaultError, FileError
from tinybert_ds.models.saving import save_student

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def small_files(one_rank_group):
    """Let no file of this process grow beyond 10 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_student_that_does_not_fit_is_a_message_and_leaves_nothing_half_written(tmp_path, request):
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer, out = AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), tmp_path / "out"
    request.getfixturevalue("small_files")
    with pytest.raises(CheckpointError, match=r"out could not be written \(.*File too large.* MB were free there"):
        write_on_main(ALONE, out, lambda: save_student(tiny_model(), tokenizer, out))
    assert list(out.iterdir()) == []


def test_a_small_file_that_does_not_fit_is_the_same_message(tmp_path, small_files):
    path = tmp_path / "results" / "eval_results.json"

    def write() -> None:
        path.parent.mkdir()
        path.write_bytes(bytes(20_000))

    with pytest.raises(CheckpointError, match=r"eval_results\.json could not be written .*: make room and start"):
        write_on_main(ALONE, path, write)


def test_a_disk_that_is_full_outside_saves_is_a_message_with_the_last_good_checkpoint(tmp_path, small_files):
    def log() -> None:
        (tmp_path / "metrics.jsonl").write_bytes(bytes(20_000))

    full = pytest.raises(FileError, match=r"File too large; .* The last good checkpoint is step-7")
    with full, faults_reported(lambda: "The last good checkpoint is step-7"):
        log()


def test_an_error_of_the_system_that_is_no_files_stays_a_fault():
    with pytest.raises(FaultError, match="Bad file descriptor"), faults_reported(lambda: "There is no checkpoint yet"):
        raise OSError(errno.EBADF, "Bad file descriptor")


def test_a_file_that_is_refused_to_rank_0_is_raised_on_every_rank(tmp_path, one_rank_group):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file/run\.json' cannot be read or written: Not a directory"):
        run_on_main(ALONE, (tmp_path / "file" / "run.json").read_text)
