"""Shards: Megatron-style `.bin/.idx` pairs, one sequence per sentence, written whole or not at all.

Layout of an `.idx`, little-endian, as Megatron and DeepSpeed read it:

    9 bytes   b"MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     dtype code, 3 = int16, 4 = int32
    uint64    n, number of sequences
    uint64    d, length of the document index
    int32     [n] tokens of each sequence
    int64     [n] byte offset of each sequence in the `.bin`
    int64     [d] first sequence of each document, and n at the end

n sentences, d - 1 documents, T tokens of a shard.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

from tinybert_ds.errors import DataError
from tinybert_ds.files import fsync_directory
from tinybert_ds.progress import progress_bar

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES: dict[np.dtype, int] = {np.dtype(np.int16): 3, np.dtype(np.int32): 4}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
INT16_VOCABULARY = 2**15
_COPY_BYTES = 1 << 24
_INDEX_AT_ONCE = 1 << 20
TEMPORARY_SUFFIX = ".tmp"


class FileRecord(NamedTuple):
    """What the manifest keeps of a file: its size and the hexadecimal xxh3-64 of its content."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Shard:
    """A memory-mapped shard; the arrays are views of the files."""

    name: str
    tokens: NDArray[np.integer]  # (T,) int16 or int32
    lengths: NDArray[np.int32]  # (n,) tokens of each sentence
    offsets: NDArray[np.int64]  # (n,) byte offset of each sentence
    documents: NDArray[np.int64]  # (d,) first sentence of each document, and n
    mapping: mmap.mmap | None = None  # what the tokens lie in

    @property
    def num_documents(self) -> int:
        return len(self.documents) - 1

    def document_start(self, document: int) -> int:
        """Token at which a document begins; the number of tokens for the document after the last."""
        sentence = int(self.documents[document])
        if sentence == len(self.lengths):
            return len(self.tokens)
        return int(self.offsets[sentence]) // self.tokens.itemsize

    def will_need(self, begin: int, end: int) -> None:
        """Have the tokens [begin, end) read ahead in one go: a cold disk is much slower page by page."""
        if self.mapping is not None and end > begin:
            start = begin * self.tokens.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapping.madvise(mmap.MADV_WILLNEED, start, end * self.tokens.itemsize - start)

    def first_document_from(self, token: int) -> int:
        """The first document that begins at `token` or after it, by bisection: O(log d) reads of the index."""
        return bisect_left(range(self.num_documents), token, key=self.document_start)


def token_dtype(vocab_size: int) -> np.dtype:
    """int16 where it holds every id, else int32: the two codes on which DeepSpeed's and Megatron's readers agree."""
    return np.dtype(np.int16) if vocab_size <= INT16_VOCABULARY else np.dtype(np.int32)


class ShardWriter:
    """Writes one shard under temporary names, in memory that does not grow with its sentences."""

    def __init__(self, directory: Path, name: str, dtype: DTypeLike) -> None:
        self.name = name
        self.num_tokens = 0
        self.num_sentences = 0
        self._directory = directory
        self._dtype = np.dtype(dtype)
        self._documents = array("q", [0])
        self._hash = xxhash.xxh3_64()
        self._bin = self._temporary(".bin").open("wb")
        self._idx = self._temporary(".idx").open("wb+")
        self._idx.write(bytes(_HEADER.size))  # the counts are known at the end

    @property
    def num_documents(self) -> int:
        return len(self._documents) - 1

    def add_sentences(
        self, tokens: NDArray[np.integer], lengths: NDArray[np.integer], document_ends: NDArray[np.integer]
    ) -> None:
        """Append sentences to the open document and end documents among them.

        Args:
            tokens: (Σ lengths,) ids; assumed to fit the dtype.
            lengths: (k,) tokens of each sentence, all positive.
            document_ends: (e,) ascending; how many of these sentences come before each end of a document. An end
                with no sentence since the one before leaves no trace.
        """
        data = np.ascontiguousarray(tokens, dtype=self._dtype.newbyteorder("<")).data
        self._hash.update(data)
        self._bin.write(data)
        self._idx.write(np.ascontiguousarray(lengths, dtype="<i4").data)
        ends = np.asarray(document_ends, dtype=np.int64) + self.num_sentences
        self._documents.frombytes(ends[np.diff(ends, prepend=self._documents[-1]) > 0].tobytes())
        self.num_tokens += len(tokens)
        self.num_sentences += len(lengths)

    def finish(self) -> dict[str, FileRecord]:
        """End the open document, complete, sync and rename both files; what is recorded of them, by file name."""
        if self.num_sentences > self._documents[-1]:
            self._documents.append(self.num_sentences)
        self._write_offsets()
        self._idx.write(np.frombuffer(self._documents, dtype=np.int64).astype("<i8").data)
        self._idx.seek(0)
        counts = (self.num_sentences, len(self._documents))
        self._idx.write(_HEADER.pack(_MAGIC, 1, _CODES[self._dtype], *counts))
        for handle in (self._bin, self._idx):
            handle.flush()
            os.fsync(handle.fileno())
            handle.close()
        records = {
            f"{self.name}.bin": FileRecord(self.num_tokens * self._dtype.itemsize, self._hash.hexdigest()),
            f"{self.name}.idx": hash_file(self._temporary(".idx")),
        }
        for suffix in (".bin", ".idx"):
            self._temporary(suffix).replace(self._directory / f"{self.name}{suffix}")
        fsync_directory(self._directory)
        return records

    def discard(self) -> None:
        """Close and remove what was written so far."""
        self._bin.close()
        self._idx.close()
        for suffix in (".bin", ".idx"):
            self._temporary(suffix).unlink(missing_ok=True)

    def _temporary(self, suffix: str) -> Path:
        return self._directory / f"{self.name}{suffix}{TEMPORARY_SUFFIX}"

    def _write_offsets(self) -> None:
        """Append the byte offsets, reading the lengths back from the file piece by piece."""
        offset, done = 0, 0
        while done < self.num_sentences:
            count = min(_COPY_BYTES // 4, self.num_sentences - done)
            self._idx.seek(_HEADER.size + 4 * done)
            sizes = np.frombuffer(self._idx.read(4 * count), dtype="<i4").astype(np.int64) * self._dtype.itemsize
            ends = offset + np.cumsum(sizes)
            self._idx.seek(_HEADER.size + 4 * self.num_sentences + 8 * done)
            self._idx.write((ends - sizes).astype("<i8").data)
            offset, done = int(ends[-1]), done + count


def open_shard(directory: Path, name: str, dtype_name: str | None = None, *, vouched_for: bool = False) -> Shard:
    """Memory-map a shard after checking that its index makes sense and that both files have the size that it states.

    Args:
        dtype_name: of the tokens, whatever the index says: its codes above 5 mean different dtypes to different tools.
        vouched_for: the index has the hash that it was written with, and is not looked through again.

    Raises:
        DataError: a file is missing, is no shard, has another dtype, or is shorter or longer than it should be; the
            sequences do not lie behind each other, or the documents are not made of them.
    """
    idx, bin_ = directory / f"{name}.idx", directory / f"{name}.bin"
    for path in (idx, bin_):
        require_file(path)
    with idx.open("rb") as handle:
        header = handle.read(_HEADER.size)
    if len(header) < _HEADER.size or _HEADER.unpack(header)[:2] != (_MAGIC, 1):
        raise DataError(f"{str(idx)!r} is not a version 1 index of token shards. {_RESTORE}")
    _, _, code, n, d = _HEADER.unpack(header)
    if dtype_name is None and code not in _DTYPES:
        raise DataError(
            f"{str(idx)!r} states the dtype code {code}; supported are 3 (int16) and 4 (int32), the two on which "
            "readers of this format agree. Write the shards again with pregenerate_training_data.py."
        )
    check_size(idx, _HEADER.size + 12 * n + 8 * d)
    index = np.memmap(idx, mode="r", dtype=np.uint8)
    lengths = index[_HEADER.size : _HEADER.size + 4 * n].view("<i4")
    offsets = index[_HEADER.size + 4 * n : _HEADER.size + 12 * n].view("<i8")
    documents = index[_HEADER.size + 12 * n :].view("<i8")
    if n == 0 or d < 2 or documents[0] != 0 or documents[-1] != n:
        raise DataError(f"{str(idx)!r} is damaged: its document index does not span its {n} sentences. {_RESTORE}")
    dtype = _DTYPES[code] if dtype_name is None else np.dtype(dtype_name)
    if not vouched_for and (problem := _index_problem(lengths, offsets, documents, dtype.itemsize)):
        raise DataError(f"{str(idx)!r} is damaged: {problem}. {_RESTORE}")
    check_size(bin_, int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize)
    with bin_.open("rb") as handle:
        mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    tokens = np.frombuffer(mapping, dtype=dtype.newbyteorder("<"))
    return Shard(name, tokens, lengths, offsets, documents, mapping)


def _index_problem(
    lengths: NDArray[np.int32], offsets: NDArray[np.int64], documents: NDArray[np.int64], itemsize: int
) -> str | None:
    """What is wrong with an index whose documents begin at 0 and end at its end; it is looked through in pieces."""
    end = 0
    for begin in range(0, len(lengths), _INDEX_AT_ONCE):
        tokens = np.asarray(lengths[begin : begin + _INDEX_AT_ONCE], dtype=np.int64)
        if (tokens <= 0).any():
            return f"sequence {begin + int((tokens <= 0).argmax())} has no tokens"
        ends = end + np.cumsum(tokens) * itemsize
        wrong = offsets[begin : begin + _INDEX_AT_ONCE] != ends - tokens * itemsize
        if wrong.any():
            return f"sequence {begin + int(wrong.argmax())} does not lie behind the one before it"
        end = int(ends[-1])
    for begin in range(0, len(documents), _INDEX_AT_ONCE):
        falls = np.diff(documents[begin : begin + _INDEX_AT_ONCE + 1]) < 0
        if falls.any():
            return f"document {begin + int(falls.argmax())} ends before it begins"
    return None


def find_damage(path: Path, record: FileRecord, advance: Callable[[int], object]) -> str | None:
    """What is wrong with a file, in a clause; None when it is what was written. `advance` is told the bytes read."""
    try:
        found = hash_file(path, advance)
    except OSError as error:
        return f"{str(path)!r} cannot be read: {error.strerror}"
    if found == record:
        return None
    return (
        f"{str(path)!r} is damaged: its {found.bytes} bytes have the hash {found.xxh3}; {record.bytes} bytes with the "
        f"hash {record.xxh3} were written"
    )


def require_whole(path: Path, record: FileRecord) -> None:
    """Raise `DataError` unless a small file of a corpus is what was written."""
    require_file(path)
    if damage := find_damage(path, record, lambda _: None):
        raise DataError(f"{damage}. {_RESTORE}")


def hash_file(path: Path, advance: Callable[[int], object] | None = None) -> FileRecord:
    """Size and xxh3-64 of a file, read in pieces.

    Args:
        advance: told the bytes of every piece; None: a progress bar is.
    """
    digest, size = xxhash.xxh3_64(), 0
    with path.open("rb") as handle, ExitStack() as stack:
        if advance is None:
            total = path.stat().st_size
            bar = progress_bar(total=total, desc=f"hashing {path.name}", unit="B", unit_scale=True)
            advance = stack.enter_context(bar).update
        while piece := handle.read(_COPY_BYTES):
            digest.update(piece)
            size += len(piece)
            advance(len(piece))
    return FileRecord(size, digest.hexdigest())


_RESTORE = (
    "Restore the file from a copy, or remove the corpus's directory and write it again with "
    "pregenerate_training_data.py."
)


def require_file(path: Path) -> None:
    """Raise `DataError` unless a file of a corpus is there."""
    if not path.is_file():
        raise DataError(f"the shard file {str(path)!r} is missing. {_RESTORE}")


def check_size(path: Path, expected: int) -> None:
    """Raise `DataError` unless a file of a corpus is there and has its size."""
    require_file(path)
    found = path.stat().st_size
    if found != expected:
        raise DataError(f"{str(path)!r} is damaged: it has {found} bytes and should have {expected}. {_RESTORE}")
