"""The files of an augmentation: finished blocks beside the output, and the output, which is whole or not there.

`train_aug.tsv.parts/` holds the blocks of an unfinished run, `train_aug.json` says what a finished output was made of.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_tools.augment_rows import AugmentedBlock
from tinybert_ds.data.indexed import hash_file
from tinybert_ds.errors import DataError
from tinybert_ds.files import fsync_directory, write_atomically
from tinybert_ds.foreign_text import shown
from tinybert_ds.records import Count, Value, parse_record


class _Record(TypedDict):
    """What a finished output was made of, and what was counted."""

    identity: dict[str, Any]
    counts: dict[str, Count]
    output: dict[str, Any]


_IDENTITY = "identity.json"
_IDENTITY_KIND = TypeAdapter(dict[str, Any])
_COUNTS = TypeAdapter(dict[str, Count])
_RECORD = TypeAdapter(_Record)
_PART = re.compile(r"(\d+)\.part")
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 120.0


class AugmentationFiles:
    """The output of one augmentation and its unfinished blocks.

    Args:
        identity: what decides about its content; two runs with the same one write the same file.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.output = output
        self.parts = output.with_name(f"{output.name}.parts")
        self._record = output.with_suffix(".json")
        self._identity = json.loads(json.dumps(identity))  # as it will be read

    def finished_counts(self) -> Counter[str] | None:
        """Return what was counted when the output was made, None if it is not finished.

        Raises:
            DataError: a file of that name is there that was made of something else, or has changed since.
        """
        if not self.output.exists():
            return None
        record = _read(self._record, _RECORD)
        if record is None:
            if self._work() == self._identity:
                return None  # killed between the output and its record
            raise DataError(
                f"{self.output} is there, but nothing says what it was made of; rename or remove it to augment anew"
            )
        differences = _differences(record["identity"], self._identity)
        if not differences and hash_file(self.output)._asdict() != record["output"]:
            differences = ["its content has changed since it was written"]
        if differences:
            raise DataError(
                f"{self.output} is there and differs: {'; '.join(differences)}. Rename or remove it to augment anew"
            )
        return Counter(record["counts"])

    def begin(self) -> None:
        """Make the folder of blocks, or go on with the one that is there."""
        if self._work() == self._identity:
            return
        if self.parts.exists():
            print(f"{self.parts} holds an unfinished augmentation with other settings; it is dropped.", flush=True)
            shutil.rmtree(self.parts)
        self.parts.mkdir(parents=True)
        write_atomically(self.parts / _IDENTITY, json.dumps(self._identity, indent=2) + "\n")

    def join(self) -> bool:
        """Wait until another rank has begun this augmentation; return whether there is still something to do."""

        def settled() -> bool:
            return self._work() == self._identity or (self._record.exists() and self.finished_counts() is not None)

        wait_until(
            settled,
            f"still waiting for rank 0 to begin in {self.parts}; all ranks need the same files and settings, and this "
            "folder on a disk that all hosts share",
        )
        return bool(self._work() == self._identity)

    def write_block(self, block: AugmentedBlock) -> None:
        """Keep a finished block; raises DataError if another augmentation has taken the blocks' folder."""
        self._require_own_blocks()
        lines = [json.dumps(block.counts), *block.lines]
        try:
            write_atomically(self.parts / f"{block.number}.part", "\n".join(lines) + "\n")
        except FileNotFoundError:
            self._require_finished()

    def unfinished_blocks(self, num_blocks: int) -> list[int]:
        """Numbers of the blocks that are still to be made; none once they have become the output."""
        try:
            names = [_PART.fullmatch(name) for name in os.listdir(self.parts)]
        except FileNotFoundError:
            return []
        finished = {int(match[1]) for match in names if match}
        return [number for number in range(num_blocks) if number not in finished]

    def finish(self, header: str | None, num_blocks: int) -> Counter[str]:
        """Put all blocks together, note what the output was made of, and remove the blocks; return the counts."""
        self._require_own_blocks()
        try:
            return self._finish(header, num_blocks)
        except FileNotFoundError:
            return self._require_finished()

    def _finish(self, header: str | None, num_blocks: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        temporary = self.parts / f"output-{os.getpid()}"
        with temporary.open("wb") as file:
            if header is not None:
                file.write(f"{header}\n".encode())
            for number in range(num_blocks):
                first, _, rest = (self.parts / f"{number}.part").read_bytes().partition(b"\n")
                counts.update(_counts(self.parts / f"{number}.part", first))
                file.write(rest)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.output)
        fsync_directory(self.output.parent)
        record = {"identity": self._identity, "counts": counts, "output": hash_file(self.output)._asdict()}
        write_atomically(self._record, json.dumps(record, indent=2) + "\n")
        shutil.rmtree(self.parts, ignore_errors=True)  # another command with the same settings may write there just now
        return counts

    def _require_own_blocks(self) -> None:
        identity = self._work()
        if identity not in (None, self._identity):  # None: no blocks at all, see `_require_finished`
            raise DataError(
                f"another command with other settings ({'; '.join(_differences(self._identity, identity))}) has begun "
                f"to augment {self.output} and has dropped the blocks of this one; run them one after the other, and "
                "rename the output in between"
            )

    def _require_finished(self) -> Counter[str]:
        """Return what another command counted that had the same settings, was faster and has removed the blocks."""
        counts = self.finished_counts()
        if counts is None:
            raise DataError(f"{self.parts} has gone while blocks were written to it; start the same command again")
        return counts

    def _work(self) -> dict[str, Any] | None:
        """The identity of the augmentation whose blocks are there; None where none are."""
        return _read(self.parts / _IDENTITY, _IDENTITY_KIND)


def wait_until(condition: Callable[[], bool], reminder: str = "") -> None:
    """Return when a condition holds; other processes, which a launcher ends together with this one, bring it about.

    Args:
        reminder: What to say, once, when it takes long.
    """
    patience_ends = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if reminder and time.monotonic() > patience_ends:
            print(reminder, file=sys.stderr, flush=True)
            reminder = ""
        time.sleep(_POLL_SECONDS)


def _read(path: Path, kind: TypeAdapter[Value]) -> Value | None:
    with contextlib.suppress(OSError, ValueError):  # not there, or not ours
        return parse_record(path.read_bytes(), kind)
    return None


def _counts(path: Path, line: bytes) -> dict[str, int]:
    try:
        return parse_record(line, _COUNTS)
    except ValueError as error:
        raise DataError(
            f"{path}, a finished block, is damaged: {error}; remove it and start the same command again, which makes "
            "that block anew"
        ) from error


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    def pairs() -> Iterator[tuple[str, Any, Any]]:
        for name in dict.fromkeys([*found, *wanted]):
            yield name, found.get(name), wanted.get(name)

    return [
        f"{name} was {shown(repr(old), 300)} and is {shown(repr(new), 300)} now"
        for name, old, new in pairs()
        if old != new
    ]
