"""An output file and, beside it, what it was made of: the same command finds it finished, another one is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import xxhash
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from tinybert_ds.data.indexed import hash_file
from tinybert_ds.errors import DataError
from tinybert_ds.files import fsync_directory, write_atomically
from tinybert_ds.records import Count, parse_record
from tinybert_ds.shared_work.claims import describe_differences


class Record(TypedDict):
    """What a finished output was made of, and what was counted."""

    identity: dict[str, Any]
    counts: NotRequired[dict[str, Count]]
    output: dict[str, Any]


_RECORD = TypeAdapter(Record)


class MadeOf:
    """An output, the record of what it was made of, and where its parts are kept while it is unfinished.

    Args:
        identity: What decides about its content; two commands with the same one write the same file.
        advice: What to do where a file of its name is something else.
    """

    def __init__(self, output: Path, record: Path, identity: Mapping[str, Any], *, advice: str) -> None:
        self.output, self.record = output, record
        self._identity = json.loads(json.dumps(identity))  # as it will be read
        digest = xxhash.xxh3_64_hexdigest(json.dumps(self._identity, sort_keys=True).encode())
        self.parts = output.with_name(f"{output.name}.parts") / digest
        self._advice = advice

    def finished(self) -> Record | None:
        """Return the record of the output, None if that is not there.

        Raises:
            DataError: A file of that name was made of something else, or has changed since.
        """
        if not self.output.exists():
            return None
        try:
            record = parse_record(self.record.read_bytes(), _RECORD)
        except (OSError, ValueError) as error:  # not there, or not ours
            raise DataError(
                f"{self.output} is there, but nothing says what it was made of ({self.record.name}). {self._advice}"
            ) from error
        differences = describe_differences(record["identity"], self._identity)
        if not differences and hash_file(self.output)._asdict() != record["output"]:
            differences = "its content has changed since it was written"
        if differences:
            raise DataError(f"{self.output} is there and differs: {differences}. {self._advice}")
        return record

    def complete(self, whole: Path, **more: Any) -> None:
        """Let a file become the output, and before it is there note what it was made of and what else is known."""
        record = {"identity": self._identity, **more, "output": hash_file(whole)._asdict()}
        write_atomically(self.record, json.dumps(record, indent=2) + "\n")
        whole.replace(self.output)
        fsync_directory(self.output.parent)
