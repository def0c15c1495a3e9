"""Checking the hashes of a corpus while a run reads it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from tinybert_ds.data.indexed import FileRecord, hash_file
from tinybert_ds.data.manifest import read_manifest
from tinybert_ds.errors import DataError

_RESTORE = (
    "Restore the file from a copy, or write the corpus again with pregenerate_training_data.py; the checkpoints of a "
    "run that has read it may have been trained on damaged text."
)


class Verification:
    """Hashes all files of some corpora in a background thread, until the first damaged one.

    One process of each host does it: what another host reads may be another copy.

    Args:
        directories: outputs of pregenerate_training_data.py.

    Raises:
        DataError: one of them is no finished corpus.
    """

    def __init__(self, directories: Sequence[str | Path]) -> None:
        self._files = [
            (Path(directory) / name, record)
            for directory in directories
            for name, record in read_manifest(Path(directory)).files.items()
        ]
        self._damage: str | None = None
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise a `DataError` that names the first damaged file, if one was found so far."""
        if self._damage is not None:
            raise DataError(self._damage)

    def wait(self) -> None:
        """Let the checks end; raise a `DataError` that names the first damaged file, if there is one."""
        self._thread.join()
        self.check()

    def _run(self) -> None:
        for path, record in self._files:
            if self._damage is None:
                self._damage = find_damage(path, record)


def find_damage(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file, in a sentence; None when it is what was written."""
    try:
        found = hash_file(path)
    except OSError as error:
        return f"{str(path)!r} cannot be read: {error.strerror}. {_RESTORE}"
    if found == record:
        return None
    return (
        f"{str(path)!r} is damaged: its {found.bytes} bytes have the hash {found.xxh3}; {record.bytes} bytes with the "
        f"hash {record.xxh3} were written. {_RESTORE}"
    )
