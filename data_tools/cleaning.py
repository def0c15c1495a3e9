"""Which documents are left out: too short, too long, too few letters, or there before.

Documents of a part are counted from 0: each run of lines that are not blank is one. What is left out is decided before
anything is written, from a look at all documents, so that memory does not grow with a document.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from tinybert_ds.files import write_atomically

BUCKET_DOCUMENTS = 1 << 22
"""About so many documents are compared at once."""

DUPLICATES = "duplicates"


@dataclass(frozen=True)
class Filters:
    """What a document must be like."""

    min_chars: int = 0
    max_chars: int | None = None
    min_letters: float = 0.0  # letters, of any script, of the characters that are not white space

    def reason_against(self, document: _Document) -> str | None:
        """Why a document is left out, if it is."""
        if document.chars < self.min_chars:
            return "shorter than --min_chars"
        if self.max_chars is not None and document.chars > self.max_chars:
            return "longer than --max_chars"
        if document.letters < self.min_letters * document.visible:
            return "fewer letters than --min_letters"
        return None


class Survey(NamedTuple):
    """What is known of the documents of a part."""

    counts: Counter[str]  # "documents" and, by reason, those left out
    dropped: NDArray[np.int64]  # (d,) numbers of those left out by the filters
    hashes: NDArray[np.uint64]  # (k, 2) xxh3-128 of the lines of each of the others, its high half first
    numbers: NDArray[np.int64]  # (k,) numbers of these


class DocumentPicker:
    """Takes the lines of dropped documents out of the lines of a part."""

    def __init__(self, dropped: Collection[int]) -> None:
        self._dropped = dropped
        self._number = -1  # of the document that is open, or was last
        self._open = False

    def keep(self, lines: list[str]) -> list[str]:
        """The lines that stay, of those that come next in the part."""
        if not self._dropped:
            return lines
        kept = []
        for line in lines:
            if line and not self._open:
                self._number += 1
            self._open = bool(line)
            if not line or self._number not in self._dropped:
                kept.append(line)
        return kept


class Surveyor:
    """Looks at the lines of a part."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._counts: Counter[str] = Counter()
        self._dropped: list[int] = []
        self._hashes: list[tuple[int, int]] = []
        self._numbers: list[int] = []
        self._document: _Document | None = None

    def look(self, lines: Iterable[str]) -> None:
        """Take note of the lines that come next in the part."""
        for line in lines:
            if line:
                if self._document is None:
                    self._document = _Document(self._filters.min_letters > 0)
                self._document.add(line)
            elif self._document is not None:
                self._end_document(self._document)

    def finish(self) -> Survey:
        """End the last document; what was found."""
        if self._document is not None:
            self._end_document(self._document)
        hashes = np.array(self._hashes, dtype=np.uint64).reshape(-1, 2)
        return Survey(self._counts, np.array(self._dropped, np.int64), hashes, np.array(self._numbers, np.int64))

    def _end_document(self, document: _Document) -> None:
        number = self._counts["documents"]
        self._counts["documents"] += 1
        reason = self._filters.reason_against(document)
        if reason is None:
            self._hashes.append(divmod(document.hash.intdigest(), 1 << 64))
            self._numbers.append(number)
        else:
            self._counts[reason] += 1
            self._dropped.append(number)
        self._document = None


class _Document:
    def __init__(self, counts_letters: bool) -> None:
        self.hash = xxhash.xxh3_128()
        self.chars = self.visible = self.letters = 0
        self._counts_letters = counts_letters

    def add(self, line: str) -> None:
        self.hash.update(line.encode("utf-8") + b"\n")
        self.chars += len(line)
        if self._counts_letters:
            self.visible += sum(map(len, line.split()))
            self.letters += sum(map(str.isalpha, line))


def save_survey(path: Path, survey: Survey) -> None:
    """Keep a survey's arrays; `counts` are kept elsewhere."""
    _save(path, {"dropped": survey.dropped, "hashes": survey.hashes, "numbers": survey.numbers})


def num_buckets(documents: int) -> int:
    """In how many parts all documents are compared."""
    return max(1, -(-documents // BUCKET_DOCUMENTS))


def save_duplicates(path: Path, surveys: Sequence[Path], earlier: Sequence[Path], bucket: int, buckets: int) -> int:
    """Find the documents of one bucket, of those that the surveys keep, that were there before; return their number.

    Args:
        path: written: (d, 2) int64, place in `surveys` and number of each duplicate, ascending.
        surveys: of all parts, in order.
        earlier: files that `save_hashes` wrote, of documents that come before all parts.
        bucket: documents are dealt to buckets by their hashes.
    """
    hashes = [np.empty((0, 2), np.uint64)]
    places = [np.empty((0, 2), np.int64)]
    for file in earlier:
        known = np.memmap(file, np.uint64, mode="r").reshape(-1, 2)
        for begin in range(0, len(known), BUCKET_DOCUMENTS):
            piece = np.asarray(known[begin : begin + BUCKET_DOCUMENTS])
            hashes.append(piece[piece[:, 0] % np.uint64(buckets) == bucket])
            places.append(np.full((len(hashes[-1]), 2), -1))
    for place, file in enumerate(surveys):
        with np.load(file) as content:
            piece, numbers = content["hashes"], content["numbers"]
        own = piece[:, 0] % np.uint64(buckets) == bucket
        hashes.append(piece[own])
        places.append(np.stack([np.full(len(hashes[-1]), place), numbers[own]], axis=1))
    all_hashes, all_places = np.concatenate(hashes), np.concatenate(places)
    order = np.lexsort((all_hashes[:, 1], all_hashes[:, 0]))  # stable: the first of equals stays first
    repeated = (np.diff(all_hashes[order], axis=0) == 0).all(axis=1)
    found = all_places[order[1:][repeated]]
    found = found[found[:, 0] >= 0]
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    _save(path, {"duplicates": found})
    return len(found)


def dropped_documents(survey: Path, place: int, duplicates: Sequence[Path]) -> tuple[frozenset[int], int]:
    """Numbers of the documents of a part that are left out, and how many of them are duplicates."""
    with np.load(survey) as content:
        dropped = set(content["dropped"].tolist())
    repeated: set[int] = set()
    for path in duplicates:
        with np.load(path) as content:
            found = content["duplicates"]
        begin, end = np.searchsorted(found[:, 0], [place, place + 1])
        repeated.update(found[begin:end, 1].tolist())
    return frozenset(dropped | repeated), len(repeated)


def save_hashes(path: Path, surveys: Sequence[Path]) -> None:
    """Keep the hashes of all documents of the surveys, (k, 2) uint64, for a corpus that is to be extended."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as handle:
        for survey in surveys:
            with np.load(survey) as content:
                handle.write(content["hashes"].astype("<u8").tobytes())
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def _save(path: Path, arrays: dict[str, NDArray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own arguments
    write_atomically(path, content.getvalue())
