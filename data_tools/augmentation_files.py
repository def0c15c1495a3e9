"""The files of an augmentation: finished blocks beside the output, and the output, which is whole or not there.

`train_aug.tsv.parts/` holds the blocks of unfinished runs, in a folder for each of their settings; `train_aug.json`
says what a finished output was made of.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_tools.augment_rows import AugmentedBlock
from tinybert_ds.data.indexed import hash_file
from tinybert_ds.errors import DataError
from tinybert_ds.files import fsync_directory, write_atomically
from tinybert_ds.records import Count, parse_record
from tinybert_ds.shared_work.claims import describe_differences


class _Record(TypedDict):
    """What a finished output was made of, and what was counted."""

    identity: dict[str, Any]
    counts: dict[str, Count]
    output: dict[str, Any]


_COUNTS = TypeAdapter(dict[str, Count])
_RECORD = TypeAdapter(_Record)
_PART = re.compile(r"(\d+)\.part")


class AugmentationFiles:
    """The output of one augmentation and its unfinished blocks.

    Args:
        identity: what decides about its content; two runs with the same one write the same file.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.output = output
        self._identity = json.loads(json.dumps(identity))  # as it will be read
        digest = xxhash.xxh3_64_hexdigest(json.dumps(self._identity, sort_keys=True).encode())
        self._all_parts = output.with_name(f"{output.name}.parts")
        self.parts = self._all_parts / digest
        self._record = output.with_suffix(".json")

    def finished_counts(self) -> Counter[str] | None:
        """Return what was counted when the output was made, None if it is not finished.

        Raises:
            DataError: a file of that name is there that was made of something else, or has changed since.
        """
        if not self.output.exists():
            return None
        record = None
        with contextlib.suppress(OSError, ValueError):  # not there, or not ours
            record = parse_record(self._record.read_bytes(), _RECORD)
        if record is None:
            raise DataError(
                f"{self.output} is there, but nothing says what it was made of; rename or remove it to augment anew"
            )
        differences = describe_differences(record["identity"], self._identity)
        if not differences and hash_file(self.output)._asdict() != record["output"]:
            differences = "its content has changed since it was written"
        if differences:
            raise DataError(f"{self.output} is there and differs: {differences}. Rename or remove it to augment anew")
        return Counter(record["counts"])

    def begin(self) -> bool:
        """Make the folder of blocks; False if all is finished, as another rank may have done it meanwhile."""
        self.parts.mkdir(parents=True, exist_ok=True)
        if self.finished_counts() is None:
            return True
        shutil.rmtree(self._all_parts, ignore_errors=True)
        return False

    def write_block(self, block: AugmentedBlock) -> None:
        """Keep a finished block; raises DataError if another augmentation has made the output meanwhile."""
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
        """Put all blocks together, note what the output was made of, and remove all blocks; return the counts."""
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
        record = {"identity": self._identity, "counts": counts, "output": hash_file(temporary)._asdict()}
        write_atomically(self._record, json.dumps(record, indent=2) + "\n")  # first: no output is without its record
        temporary.replace(self.output)
        fsync_directory(self.output.parent)
        # Those of other settings, too: the output is there now. Whoever still writes them is told so.
        shutil.rmtree(self._all_parts, ignore_errors=True)
        return counts

    def _require_finished(self) -> Counter[str]:
        """Return what another command counted that had the same settings, was faster and has removed the blocks."""
        counts = self.finished_counts()
        if counts is None:
            raise DataError(f"{self.parts} has gone while blocks were written to it; start the same command again")
        return counts


def _counts(path: Path, line: bytes) -> dict[str, int]:
    try:
        return parse_record(line, _COUNTS)
    except ValueError as error:
        raise DataError(
            f"{path}, a finished block, is damaged: {error}; remove it and start the same command again, which makes "
            "that block anew"
        ) from error
