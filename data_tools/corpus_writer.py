"""Writes a corpus directory: shards cut at ends of documents, the manifest last."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.tokenise_text import TokenisedUnit
from tinybert_ds.data.blocks import COUNTS_DIRECTORY
from tinybert_ds.data.indexed import FileRecord, ShardWriter, hash_file
from tinybert_ds.data.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    Sampling,
    ShardRecord,
    SourceRange,
    write_manifest,
)
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.errors import DataError
from tinybert_ds.files import write_atomically

UNFINISHED_NAME = "unfinished.json"
_UNFINISHED_TEXT = json.dumps({"state": "being written; the shards here are no corpus until manifest.json is there"})
_OURS = re.compile(
    r"shard-\d{5,}\.(bin|idx)(\.tmp)?"
    rf"|\.?({re.escape(TOKENIZER_NAME)}|{re.escape(MANIFEST_NAME)}|{re.escape(UNFINISHED_NAME)})(\.\d+\.tmp)?"
)


@dataclass(frozen=True)
class CorpusIdentity:
    """What, besides the inputs, makes a corpus what it is."""

    tokenizer_fingerprint: str
    tokenizer_json: str
    special_ids: SpecialIds
    options: Mapping[str, Any]
    sampling: Sampling


class CorpusWriter:
    """Cuts a stream of tokenised units into shards; a context manager that drops the open shard on an error.

    Nothing is created before there is a sentence to write. A file `unfinished.json` marks the directory until the
    manifest is there, so that a later run knows the shards of a killed one for its own.
    """

    def __init__(self, directory: Path, dtype: str, shard_tokens: int) -> None:
        self._directory = directory
        self._dtype = np.dtype(dtype)
        self._shard_tokens = shard_tokens
        self._shard: ShardWriter | None = None
        self._input = (
            "",
            0,
            0,
        )  # name of the input being read, where the open shard's part of it begins, how far it is
        self._sources: list[SourceRange] = []
        self._records: list[ShardRecord] = []
        self._text_bytes = 0

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.discard()
        if isinstance(error, OSError):
            raise DataError(
                f"cannot write to {str(self._directory)!r}: {error}. Make room or mend the directory, and run the same "
                "command again."
            ) from error

    def add(self, name: str, begin: int, unit: TokenisedUnit) -> None:
        """Append a unit whose text begins at offset `begin` of the input `name`."""
        if name != self._input[0]:
            self._end_range()
            self._input = (name, begin, begin)
        tokens_before = np.concatenate([[0], np.cumsum(unit.lengths)])
        ends = unit.document_ends
        sentence, end = 0, 0
        while True:
            open_tokens = self._shard.num_tokens if self._shard else 0
            filled = open_tokens + tokens_before[ends[end:]] - tokens_before[sentence]
            full = end + int(np.searchsorted(filled, self._shard_tokens))
            if full == len(ends):
                break
            self._append(unit, tokens_before, slice(sentence, int(ends[full])), ends[end : full + 1])
            self._input = (name, self._input[1], int(unit.end_offsets[full]))
            self._finish_shard()
            sentence, end = int(ends[full]), full + 1
        self._append(unit, tokens_before, slice(sentence, len(unit.lengths)), ends[end:])
        self._input = (name, self._input[1], begin + unit.text_bytes)
        self._text_bytes += unit.text_bytes

    def finish(self, identity: CorpusIdentity, inputs: Mapping[str, FileRecord]) -> Manifest:
        """Finish the last shard and write the tokeniser and the manifest.

        Raises:
            DataError: there was nothing to write.
        """
        if self._shard is not None:
            self._finish_shard()
        if not self._records:
            raise DataError(
                f"the corpus is empty: the inputs hold {self._text_bytes} bytes, but not one sentence. Give text with "
                "one sentence a line and a blank line between documents."
            )
        tokenizer_path = self._directory / TOKENIZER_NAME
        write_atomically(tokenizer_path, identity.tokenizer_json)
        manifest = Manifest(
            tokenizer_fingerprint=identity.tokenizer_fingerprint,
            special_ids=identity.special_ids,
            options=identity.options,
            sampling=identity.sampling,
            inputs=inputs,
            shards=tuple(self._records),
            tokenizer_file=hash_file(tokenizer_path),
            text_bytes=self._text_bytes,
        )
        write_manifest(self._directory, manifest)
        (self._directory / UNFINISHED_NAME).unlink(missing_ok=True)
        return manifest

    def _append(
        self, unit: TokenisedUnit, tokens_before: NDArray[np.int64], part: slice, ends: NDArray[np.int64]
    ) -> None:
        """Append some sentences of a unit; `ends` are counted from the unit's first sentence."""
        if part.start == part.stop and self._shard is None:
            return
        if self._shard is None:
            self._shard = self._new_shard()
        tokens = unit.tokens[tokens_before[part.start] : tokens_before[part.stop]]
        self._shard.add_sentences(tokens, unit.lengths[part], ends - part.start)

    def _new_shard(self) -> ShardWriter:
        if not self._records:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._directory / UNFINISHED_NAME, _UNFINISHED_TEXT)
            for path in unfinished_files(self._directory):
                path.unlink()
        return ShardWriter(self._directory, f"shard-{len(self._records):05d}", self._dtype)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        self._end_range()
        shard, self._shard = self._shard, None
        files = shard.finish()
        counts = (shard.num_documents, shard.num_sentences, shard.num_tokens)
        self._records.append(ShardRecord(shard.name, *counts, files, tuple(self._sources)))
        self._sources = []

    def _end_range(self) -> None:
        """Note which text of the current input went into the open shard."""
        name, begin, end = self._input
        if end > begin:
            self._sources.append(SourceRange(name, begin, end))
        self._input = (name, end, end)


def unfinished_files(directory: Path) -> list[Path]:
    """Shards and temporary files that a killed run left behind."""
    return [path for path in sorted(directory.iterdir()) if _OURS.fullmatch(path.name) and path.name != UNFINISHED_NAME]


def check_output_directory(directory: Path) -> None:
    """Refuse a directory into which shards must not be written.

    Raises:
        DataError: not a directory, or it holds files of something else.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise DataError(f"the output {str(directory)!r} is a file; give a new or an empty directory.")
    names = sorted(path.name for path in directory.iterdir())
    ours = {name for name in names if _OURS.fullmatch(name) or name == COUNTS_DIRECTORY}
    foreign = [name for name in names if name not in ours] if UNFINISHED_NAME in names else names
    if foreign:
        raise DataError(
            f"the output directory {str(directory)!r} holds files that are not of this corpus: "
            f"{', '.join(foreign[:5])}{' ...' * (len(foreign) > 5)}. Give a new or an empty directory."
        )
