"""Checking the hashes of a corpus while a run reads it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinybert_ds.data.indexed import find_damage
from tinybert_ds.data.manifest import read_manifest
from tinybert_ds.errors import DataError

_RESTORE = (
    "Restore the file from a copy, or remove the corpus's directory and write it again with "
    "pregenerate_training_data.py; the checkpoints of a run that has read it may have been trained on damaged text."
)


class Progress(NamedTuple):
    """How far the checks have come."""

    hashed_bytes: int
    total_bytes: int
    ended: bool
    damage: str | None  # the first that was found


class Verification:
    """Hashes all files of some corpora in a background thread, until the first damaged one.

    One process of each host does it: what another host reads may be another copy.

    Raises:
        DataError: one of them is no finished corpus.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        self._files = [
            (Path(directory) / name, record)
            for directory in directories
            for name, record in read_manifest(Path(directory)).files.items()
        ]
        self.total_bytes = sum(record.bytes for _, record in self._files)
        self._hashed_bytes = 0
        self._damage: str | None = None
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise a `DataError` that names the first damaged file, if one was found so far."""
        if self._damage is not None:
            raise DataError(self._damage)

    def progress(self, *, within: float) -> Progress:
        """Say how far the checks are after so many seconds, or sooner where they end before."""
        self._thread.join(within)
        return Progress(self._hashed_bytes, self.total_bytes, not self._thread.is_alive(), self._damage)

    def _run(self) -> None:
        for path, record in self._files:
            if self._damage is None:
                damage = find_damage(path, record, self._advance)
                self._damage = damage and f"{damage}. {_RESTORE}"

    def _advance(self, count: int) -> None:
        self._hashed_bytes += count
