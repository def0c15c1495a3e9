"""The files of an augmentation: finished blocks beside the output, and the output, which is whole or not there.

`train_aug.tsv.parts/` holds the blocks of unfinished runs, in a folder for each of their settings; `train_aug.json`
says what a finished output was made of.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_tools.augment_rows import AugmentedBlock
from data_tools.made_of import MadeOf
from tinybert_ds.errors import DataError
from tinybert_ds.files import write_atomically
from tinybert_ds.records import Count, parse_record

_COUNTS = TypeAdapter(dict[str, Count])
_PART = re.compile(r"(\d+)\.part")


class AugmentationFiles:
    """The output of one augmentation and its unfinished blocks.

    Args:
        identity: what decides about its content; two runs with the same one write the same file.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.output = output
        self._made = MadeOf(output, output.with_suffix(".json"), identity, advice="Rename or remove it to augment anew")
        self.parts = self._made.parts

    def finished_counts(self) -> Counter[str] | None:
        """Return what was counted when the output was made, None if it is not finished; raises as `MadeOf.finished`."""
        record = self._made.finished()
        return None if record is None else Counter(record.get("counts"))

    def begin(self) -> bool:
        """Make the folder of blocks; False if all is finished, as another rank may have done it meanwhile."""
        self.parts.mkdir(parents=True, exist_ok=True)
        if self.finished_counts() is None:
            return True
        shutil.rmtree(self.parts.parent, ignore_errors=True)
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
        self._made.complete(temporary, counts=counts)
        # Those of other settings, too: the output is there now. Whoever still writes them is told so.
        shutil.rmtree(self.parts.parent, ignore_errors=True)
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
