from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from tinybert_ds.errors import ConfigError
from tinybert_ds.export import place
from tinybert_ds.export.place import may_take_export, put_in_place, scratch_inside
from tinybert_ds.export.record import TITLE, is_export


def write_export(folder: Path, mark: str) -> Path:
    """All files of an export, with a mark in each."""
    for name in ("onnx/model.onnx", "config.json", "tokenizer.json", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(mark)
    (folder / "report.md").write_text(f"{TITLE}\n{mark}")
    (folder / "report.json").write_text(json.dumps({"about": {"mark": mark}, "exports": []}))
    return folder


def marks(directory: Path) -> set[str]:
    """Of which exports there are files."""
    texts = [path.read_text() for path in directory.rglob("*") if path.is_file()]
    return {mark for mark in ("old", "new") if any(mark in text for text in texts)}


def interrupt(monkeypatch, after: int) -> None:
    """Let the process end in the place of a rename."""
    true_replace, numbers = os.replace, itertools.count()

    def replace(source, target):
        if next(numbers) == after:
            raise KeyboardInterrupt
        true_replace(source, target)

    monkeypatch.setattr(place.os, "replace", replace)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("after", range(6))
def test_an_interrupted_export_is_not_taken_for_a_whole_one_and_can_be_repeated(tmp_path, monkeypatch, after, is_first):
    out = tmp_path / "out"
    out.mkdir()
    if not is_first:
        write_export(out, "old")
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(write_export(tmp_path / "first", "new"), out)
    assert not is_export(out)
    assert may_take_export(out)
    put_in_place(write_export(tmp_path / "second", "new"), out)
    assert is_export(out)
    assert marks(out) == {"new"}


def test_files_of_a_format_that_is_no_longer_asked_for_are_removed_and_foreign_ones_are_not(tmp_path):
    out = write_export(tmp_path / "out", "old")
    (out / "openvino").mkdir()
    (out / "mine").touch()
    put_in_place(write_export(tmp_path / "new", "new"), out)
    assert not (out / "openvino").exists()
    assert (out / "mine").exists()


def test_what_a_killed_export_left_aside_does_not_count_as_foreign(tmp_path):
    (tmp_path / ".exporting-x1" / "model").mkdir(parents=True)
    assert may_take_export(tmp_path)
    (tmp_path / "report.md").write_text("# Mine\n")
    assert not may_take_export(tmp_path)


def test_directories_that_nothing_was_put_into_are_removed_and_those_that_were_there_are_not(tmp_path):
    (tmp_path / "there").mkdir()

    def interrupted(out: Path) -> None:
        with scratch_inside(out) as scratch:
            assert scratch.parent == out
            (scratch / "model").mkdir()
            raise KeyboardInterrupt

    for out in (tmp_path / "new" / "out", tmp_path / "there"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(out)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with scratch_inside(tmp_path / "new" / "out") as scratch:
        put_in_place(write_export(scratch / "whole", "new"), tmp_path / "new" / "out")
    assert is_export(tmp_path / "new" / "out")
    assert not list(tmp_path.rglob(".exporting-*"))


@pytest.mark.parametrize("name", ["file/out", "link"])
def test_a_directory_that_cannot_be_made_is_told_of_at_the_start_and_leaves_nothing(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    with pytest.raises(OSError, match=name), scratch_inside(tmp_path / name):
        pytest.fail("it was made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_what_killed_exports_have_left_is_removed_but_not_what_one_under_way_works_with(tmp_path):
    (tmp_path / ".exporting-left" / "model").mkdir(parents=True)
    with scratch_inside(tmp_path) as scratch:
        assert list(tmp_path.iterdir()) == [scratch]
        with pytest.raises(ConfigError, match="another export writes to --output_dir"), scratch_inside(tmp_path):
            pytest.fail("it is held")
        assert scratch.is_dir()
    with scratch_inside(tmp_path) as scratch:
        assert scratch.is_dir()
