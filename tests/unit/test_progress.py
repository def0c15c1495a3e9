import logging
import time

import pytest

from tinybert_ds import progress
from tinybert_ds.data.indexed import hash_file
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.progress import progress_bar


@pytest.fixture(autouse=True)
def _first_rank(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(logging.getLogger("tinybert_ds"), "level", logging.INFO)


@pytest.fixture
def impatient(monkeypatch):
    """Bars that wait for nothing."""
    monkeypatch.setattr(progress, "tqdm", lambda **options: TQDM(**{**options, "delay": 0, "mininterval": 0}))


TQDM = progress.tqdm


def count(steps, delay):
    with progress_bar(total=steps, desc="counting", unit="sheep", delay=delay) as bar:
        for _ in range(steps):
            bar.update()
            time.sleep(0.02)


def test_a_bar_appears_only_when_the_work_lasts(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_FILE_SECONDS", 0.0)
    count(3, delay=60.0)
    assert "counting" not in capsys.readouterr().err
    count(3, delay=0.03)
    assert "counting" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "level"), [("1", logging.INFO), ("0", logging.WARNING)])
def test_other_ranks_and_a_high_log_level_show_no_bar(capsys, monkeypatch, impatient, rank, level):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(logging.getLogger("tinybert_ds"), "level", level)
    count(2, delay=0.0)
    assert capsys.readouterr().err == ""


def test_hashing_tells_its_bytes(tmp_path, capsys, impatient):
    (tmp_path / "config.json").write_bytes(b"{}" * 5000)
    hash_file(tmp_path / "config.json")
    assert "hashing config.json" in capsys.readouterr().err
    model_fingerprint(tmp_path)
    shown = capsys.readouterr().err
    assert f"hashing {tmp_path.name}" in shown
    assert "100%" in shown
