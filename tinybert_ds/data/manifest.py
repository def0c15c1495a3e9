"""A corpus directory: shards, the tokeniser that made them, and the manifest that says all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from tinybert_ds.data.indexed import FileRecord, Shard, check_size, open_shard, require_whole
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.errors import DataError
from tinybert_ds.files import write_atomically
from tinybert_ds.records import Count, read_record, sealed, validate

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
_CHINESE_SHARE = 0.25  # of a vocabulary; bert-base-chinese has 35 %, multilingual ones about 11 %
_OPEN_SHARDS = 256
_INSIDE_WORD = "##"  # before the pieces of WordPiece that continue a word
LARGEST_VOCABULARY = 2**31  # ids are int32 at most

TokenDtype = Literal["int16", "int32", "uint16"]


@dataclass(frozen=True)
class Sampling:
    """How samples are made of a corpus unless a training command says otherwise."""

    max_seq_len: int = 128
    short_seq_prob: float = 0.1
    masked_lm_prob: float = 0.0
    max_predictions_per_seq: int = 20
    whole_word: bool = False
    one_seq: bool = False
    full_sentences: bool = False


class SourceRange(NamedTuple):
    """The part of an input that a shard holds: bytes of its decompressed text, or rows of a Parquet file."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class ShardRecord:
    """A shard as the manifest knows it."""

    name: str
    documents: int
    sentences: int
    tokens: int
    files: Mapping[str, FileRecord]
    sources: tuple[SourceRange, ...]
    dtype: TokenDtype | None = None  # of the tokens, where the index does not say it, because another tool wrote it


@dataclass(frozen=True)
class Manifest:
    """All that is known of a corpus."""

    tokenizer_fingerprint: str
    special_ids: SpecialIds
    options: Mapping[str, Any]  # what changed the bytes of the shards
    sampling: Sampling
    inputs: Mapping[str, FileRecord]
    shards: tuple[ShardRecord, ...]
    tokenizer_file: FileRecord
    text_bytes: int
    report: Mapping[str, int] = field(default_factory=dict)  # documents seen, and what was left out, by reason
    other_files: Mapping[str, FileRecord] = field(default_factory=dict)  # which training does not read

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def sentences(self) -> int:
        return sum(shard.sentences for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every file that training reads."""
        shard_files = {name: record for shard in self.shards for name, record in shard.files.items()}
        return {**shard_files, TOKENIZER_NAME: self.tokenizer_file}

    @property
    def fingerprint(self) -> str:
        """Names the content: the tokens and the tokeniser, not where or how they were made."""
        content = [self.tokenizer_fingerprint, [[name, *record] for name, record in sorted(self.files.items())]]
        return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


class Shards(Sequence[Shard]):
    """The shards of a corpus, memory-mapped when they are asked for; only so many are open at a time.

    Each open shard holds two file descriptors and two mappings, of which a process has only thousands.
    """

    def __init__(self, directory: Path, records: Sequence[ShardRecord]) -> None:
        self._directory = directory
        self._records = records
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._map)
        self._vouched_for: set[int] = set()  # whose index has been compared with its hash

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: Any) -> Any:
        """The shard of a number.

        Raises:
            DataError: its files are not those of the manifest.
        """
        place = range(len(self))[number]
        return [self._shard(each) for each in place] if isinstance(place, range) else self._shard(place)

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    def _map(self, number: int) -> Shard:
        record = self._records[number]
        if number not in self._vouched_for:
            index = f"{record.name}.idx"
            require_whole(self._directory / index, record.files[index])
            self._vouched_for.add(number)
        shard = open_shard(self._directory, record.name, record.dtype, vouched_for=True)
        found = (shard.num_documents, len(shard.lengths), len(shard.tokens))
        expected = (record.documents, record.sentences, record.tokens)
        if found != expected:
            raise DataError(
                f"shard {record.name!r} in {str(self._directory)!r} has (documents, sentences, tokens) {found}, but "
                f"its manifest says {expected}. Restore it from a copy, or remove the "
                "directory and write the corpus again."
            )
        return shard


class Corpus(NamedTuple):
    """A corpus directory with its shards."""

    directory: Path
    manifest: Manifest
    shards: Shards


def open_corpus(directory: str | Path) -> Corpus:
    """Read the manifest and check that all files have their sizes, and the tokeniser its hash.

    A shard is memory-mapped, and the hash of its index is checked, when it is first read. The hashes of the tokens are
    not: see `Verification`.

    Raises:
        DataError: no corpus, an unfinished one, another format version, or a missing or damaged file.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name, record in manifest.files.items():
        check_size(directory / name, record.bytes)
    require_whole(directory / TOKENIZER_NAME, manifest.tokenizer_file)
    return Corpus(directory, manifest, Shards(directory, manifest.shards))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished corpus.

    Raises:
        DataError: the directory or the manifest is missing, unreadable, or of another format version.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise DataError(f"{str(directory)!r} is not a directory. Give the output of pregenerate_training_data.py.")
    if not path.is_file():
        raise DataError(
            f"{str(directory)!r} is not a finished corpus: it has no {MANIFEST_NAME}, which is written last. "
            "Run pregenerate_training_data.py again with the same arguments."
        )
    content = read_record(path, _OBJECT, _REMEDY, DataError)
    version = content.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise DataError(
            f"{str(path)!r} has format version {version!r}; this version of TinyBERT-DS reads {FORMAT_VERSION}. "
            "Remove the directory and write the corpus again with pregenerate_training_data.py."
        )
    try:
        return _from_document(validate(content, _DOCUMENT))
    except ValueError as problem:
        raise DataError(f"{str(path)!r} is damaged: {problem}; {_REMEDY}") from problem


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, which declares the corpus finished."""
    write_atomically(directory / MANIFEST_NAME, manifest_text(manifest))


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON; the same content gives the same bytes."""
    content = {
        "format_version": FORMAT_VERSION,
        "counts": {
            "documents": manifest.documents,
            "sentences": manifest.sentences,
            "tokens": manifest.tokens,
            "text_bytes": manifest.text_bytes,
        },
        "tokenizer": {
            "fingerprint": manifest.tokenizer_fingerprint,
            "file": manifest.tokenizer_file._asdict(),
            "special_ids": manifest.special_ids._asdict(),
        },
        "options": dict(manifest.options),
        "sampling": asdict(manifest.sampling),
        "inputs": {name: record._asdict() for name, record in manifest.inputs.items()},
        "report": dict(manifest.report),
        "other_files": {name: record._asdict() for name, record in manifest.other_files.items()},
        "shards": [
            {
                **{column.name: getattr(shard, column.name) for column in fields(shard)},
                "files": {name: record._asdict() for name, record in shard.files.items()},
                "sources": [source._asdict() for source in shard.sources],
            }
            for shard in manifest.shards
        ],
    }
    return json.dumps(sealed(content), indent=1, ensure_ascii=False) + "\n"


class _Counts(TypedDict):
    documents: Count
    sentences: Count
    tokens: Count
    text_bytes: Count


class _Tokenizer(TypedDict):
    fingerprint: str
    file: FileRecord
    special_ids: SpecialIds


@with_config(ConfigDict(extra="forbid"))
class _Document(TypedDict):
    """The manifest as it is on the disk."""

    format_version: Literal[1]
    counts: _Counts
    tokenizer: _Tokenizer
    options: dict[str, Any]
    sampling: Sampling
    inputs: dict[str, FileRecord]
    report: dict[str, int]
    other_files: dict[str, FileRecord]
    shards: list[ShardRecord]


_OBJECT = TypeAdapter(dict[str, Any])
_DOCUMENT = TypeAdapter(_Document)
_REMEDY = "restore it from a copy, or remove the directory and write the corpus again"


def _from_document(document: _Document) -> Manifest:
    tokenizer = document["tokenizer"]
    manifest = Manifest(
        tokenizer_fingerprint=tokenizer["fingerprint"],
        special_ids=tokenizer["special_ids"],
        options=document["options"],
        sampling=document["sampling"],
        inputs=document["inputs"],
        shards=tuple(document["shards"]),
        tokenizer_file=tokenizer["file"],
        text_bytes=document["counts"]["text_bytes"],
        report=document["report"],
        other_files=document["other_files"],
    )
    if any(getattr(manifest, name) != count for name, count in document["counts"].items()):
        raise ValueError("its counts are not those of its shards")
    for shard in manifest.shards:
        if {*shard.files} != {f"{shard.name}.bin", f"{shard.name}.idx"} or Path(shard.name).name != shard.name:
            raise ValueError(f"the shard {shard.name[:100]!r} is not made of its two files")
    special = manifest.special_ids
    marks = {special.cls, special.sep, special.pad, *special.prefix, *special.middle, *special.suffix}
    marks |= {*special.all_special, special.pad if special.mask is None else special.mask}
    if special.vocab_size > LARGEST_VOCABULARY or not all(0 <= token < special.vocab_size for token in marks):
        raise ValueError("its special tokens are not in its vocabulary")
    return manifest


def tokens_of(directory: Path) -> dict[str, int]:
    """Token -> id of a corpus's tokeniser, whose file `open_corpus` has found to be as it was written; without those
    that were added."""
    vocabulary = json.loads((directory / TOKENIZER_NAME).read_text(encoding="utf-8"))["model"]["vocab"]
    return dict(vocabulary) if isinstance(vocabulary, dict) else {piece: n for n, (piece, _) in enumerate(vocabulary)}


def continuations(tokenizer_json: str, vocab_size: int, *, listed: bool = False) -> np.ndarray:
    """(vocab_size,) bool: which ids of a tokeniser continue a word, for whole-word masking.

    Args:
        listed: Whether a list says which characters belong together, so that pieces need not.

    Raises:
        DataError: its vocabulary does not show where words begin: it marks no pieces, or consists of Chinese
            characters, each of which is cut off by itself.
    """
    vocabulary = json.loads(tokenizer_json)["model"]["vocab"]  # what `open_corpus` has found to be as it was written
    mask = np.zeros(vocab_size, dtype=bool)
    if isinstance(vocabulary, dict):
        mask[[token_id for token, token_id in vocabulary.items() if token.startswith(_INSIDE_WORD)]] = True
        chinese = sum(len(token) == 1 and "\u4e00" <= token <= "\u9fff" for token in vocabulary)
        if chinese > _CHINESE_SHARE * len(vocabulary) and not listed:
            raise DataError(
                f"whole-word masking needs to know where words begin, and this tokeniser cuts Chinese text into "
                f"characters ({chinese:,} of its {len(vocabulary):,} tokens are one). Leave --do_whole_word_mask away: "
                "characters are masked one by one; or give it in general distillation, with a --word_list."
            )
    if not mask.any() and not listed:
        raise DataError(
            f"whole-word masking needs a WordPiece vocabulary, whose pieces inside a word begin with {_INSIDE_WORD!r}; "
            "this tokeniser has none. Leave --do_whole_word_mask away."
        )
    return mask
