"""A retrieval set in BEIR's layout: corpus.jsonl, queries.jsonl, and which documents answer which query.

Q queries, K documents that are kept of each ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tinybert_ds.data.object_records import Records, find_column
from tinybert_ds.data.table_formats import read_records
from tinybert_ds.data.task_spec import TextFormat
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import COMPRESSED, listed, quoted, shown

BLOCK_DOCUMENTS = 4096
"""Documents that are read, tokenised and encoded at once."""

Judgements = dict[str, dict[str, int]]
"""Query -> document -> how well it answers; 0: not at all."""

Ranking = dict[str, dict[str, float]]
"""Query -> document -> score."""

_INSTALL = "pip install 'tinybert-ds[retrieval]'"


@dataclass(frozen=True)
class RetrievalSet:
    """A retrieval set whose documents are read when they are asked for."""

    name: str
    corpus: Path
    queries: dict[str, str]  # id -> text, of those that are judged
    judgements: Judgements

    def documents(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield ids and texts of the documents, `BLOCK_DOCUMENTS` at a time; a title stands before its text.

        Raises:
            DataError: A line that is no document; names it.
        """
        records, own, text = _open(self.corpus)
        title = find_column(records.names or [], "title")
        seen: set[str] = set()
        while block := list(islice(records.rows, BLOCK_DOCUMENTS)):
            ids = [fields[own] for _, fields in block]
            for (number, _), name in zip(block, ids, strict=True):
                if name in seen:
                    raise DataError(f"{self.corpus}, line {number}: the document {quoted(name)} stands there twice")
                seen.add(name)
            texts = [fields[text] for _, fields in block]
            if title:
                titles = [fields[title[0]] for _, fields in block]
                texts = [f"{name} {body}".strip() for name, body in zip(titles, texts, strict=True)]
            yield ids, texts


def open_retrieval(directory: str | Path, split: str) -> RetrievalSet:
    """Open a directory in BEIR's layout.

    Raises:
        ConfigError: The library that will judge it is not installed.
        DataError: Files that are not there, or not in that layout; names file and line.
    """
    _ir_measures()
    directory = Path(directory)
    corpus, queries = (_existing(directory, name) for name in ("corpus.jsonl", "queries.jsonl"))
    judgements = _judgements(directory, split)
    records, own, text = _open(queries)
    texts = {fields[own]: fields[text] for _, fields in records.rows if fields[own] in judgements}
    missing = [query for query in judgements if query not in texts]
    if missing:
        raise DataError(f"{queries} lacks queries that qrels/{split}.tsv judges: {listed(missing)}")
    return RetrievalSet(directory.resolve().name, corpus, texts, judgements)


def ndcg(judgements: Judgements, ranking: Ranking) -> float:
    """Return nDCG@10, the mean over all judged queries; one without a ranking counts 0."""
    ir_measures = _ir_measures()
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], judgements, ranking)[ir_measures.nDCG @ 10])


def _ir_measures() -> Any:
    try:
        import ir_measures  # noqa: PLC0415 - only who judges retrieval needs it
    except ImportError as error:
        raise ConfigError(f"--retrieval is judged by the library ir-measures ({error}); {_INSTALL}") from error
    return ir_measures


def _existing(directory: Path, name: str) -> Path:
    candidates = [directory / name, *(directory / f"{name}{suffix}" for suffix in COMPRESSED)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise DataError(
            f"--retrieval {directory} has no {name}; a directory in BEIR's layout holds corpus.jsonl, queries.jsonl "
            "and qrels/SPLIT.tsv"
        )
    return found


def _open(path: Path) -> tuple[Records, int, int]:
    """The objects of a file, and where their ids and texts are among the columns."""
    records = read_records(path, ["_id", "text"], TextFormat())
    found = [find_column(records.names or [], name) for name in ("_id", "text")]
    if not all(found):
        raise DataError(
            f"{path} has the keys {listed(records.names or []) or 'none'}; each line of it is an object with "
            "_id and text"
        )
    return records, found[0][0], found[1][0]


def _judgements(directory: Path, split: str) -> Judgements:
    path = directory / "qrels" / f"{split}.tsv"
    if not path.is_file():
        folder = directory / "qrels"
        there = sorted(file.stem for file in folder.glob("*.tsv")) if folder.is_dir() else []
        raise DataError(f"--retrieval_split {split}: {path} does not exist; there is {listed(there) or 'none'}")
    found: Judgements = {}
    for number, fields in read_records(path, [], TextFormat()).rows:
        if number == 1 and not fields[-1].strip().lstrip("-").isdecimal():
            continue  # the header
        if len(fields) != 3 or not fields[2].strip().lstrip("-").isdecimal():
            raise DataError(
                f"{path}, line {number}: {shown(fields)}; a line has a query, a document and a whole number, separated "
                "by tabs"
            )
        found.setdefault(fields[0], {})[fields[1]] = int(fields[2])
    if not found:
        raise DataError(f"{path} judges no query; give a split with rows")
    return found
