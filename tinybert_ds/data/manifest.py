"""A corpus directory: shards, the tokeniser that made them, and the manifest that says all of it."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from tinybert_ds.data.indexed import FileRecord, Shard, check_size, open_shard
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.errors import DataError
from tinybert_ds.files import write_atomically

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
_CHINESE_SHARE = 0.25  # of a vocabulary; bert-base-chinese has 35 %, multilingual ones about 11 %
_OPEN_SHARDS = 256


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
    dtype: str | None = None  # of the tokens, where the index does not say it, because another tool wrote it


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
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: Any) -> Any:
        """The shard of a number.

        Raises:
            DataError: its files are not those of the manifest.
        """
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        with self._lock:
            if number not in self._open:
                self._open[number] = self._map(self._records[number])
                if len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    def _map(self, record: ShardRecord) -> Shard:
        shard = open_shard(self._directory, record.name, record.dtype)
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
    """Read the manifest and check that all files have their sizes; hashes are not checked.

    A shard is memory-mapped, and its counts are checked, when it is first read.

    Raises:
        DataError: no corpus, an unfinished one, another format version, or a missing or damaged file.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name, record in manifest.files.items():
        check_size(directory / name, record.bytes)
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if version == FORMAT_VERSION:
            return _from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{str(path)!r} is damaged: {error!r}. Restore it, or remove the directory and write the corpus again."
        ) from error
    raise DataError(
        f"{str(path)!r} has format version {version!r}; this version of TinyBERT-DS reads {FORMAT_VERSION}. "
        "Remove the directory and write the corpus again with pregenerate_training_data.py."
    )


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
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _from_json(content: dict[str, Any]) -> Manifest:
    tokenizer = content["tokenizer"]
    special: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in tokenizer["special_ids"].items()
    }
    return Manifest(
        tokenizer_fingerprint=tokenizer["fingerprint"],
        special_ids=SpecialIds(**special),
        options=content["options"],
        sampling=Sampling(**content["sampling"]),
        inputs={name: FileRecord(**record) for name, record in content["inputs"].items()},
        shards=tuple(
            ShardRecord(
                **{
                    **shard,
                    "files": {name: FileRecord(**record) for name, record in shard["files"].items()},
                    "sources": tuple(SourceRange(**source) for source in shard["sources"]),
                }
            )
            for shard in content["shards"]
        ),
        tokenizer_file=FileRecord(**tokenizer["file"]),
        text_bytes=content["counts"]["text_bytes"],
        report=content["report"],
        other_files={name: FileRecord(**record) for name, record in content["other_files"].items()},
    )


def continuation_mask(directory: Path, vocab_size: int, prefix: str = "##") -> np.ndarray:
    """(vocab_size,) bool: which ids continue a word, for whole-word masking.

    Raises:
        DataError: the corpus's tokeniser is missing, or does not show where words begin.
    """
    path = directory / TOKENIZER_NAME
    if not path.is_file():
        raise DataError(f"{str(path)!r} is missing; whole-word masking needs it. Write the corpus again.")
    return continuations(path.read_text(encoding="utf-8"), vocab_size, prefix)


def continuations(tokenizer_json: str, vocab_size: int, prefix: str = "##") -> np.ndarray:
    """(vocab_size,) bool: which ids of a tokeniser continue a word.

    Raises:
        DataError: its vocabulary does not show where words begin: it marks no pieces, or consists of Chinese
            characters, each of which is cut off by itself.
    """
    vocabulary = json.loads(tokenizer_json)["model"]["vocab"]
    mask = np.zeros(vocab_size, dtype=bool)
    if isinstance(vocabulary, dict):
        mask[[token_id for token, token_id in vocabulary.items() if token.startswith(prefix)]] = True
        chinese = sum(len(token) == 1 and "\u4e00" <= token <= "\u9fff" for token in vocabulary)
        if chinese > _CHINESE_SHARE * len(vocabulary):
            raise DataError(
                f"whole-word masking needs to know where words begin, and this tokeniser cuts Chinese text into "
                f"characters ({chinese:,} of its {len(vocabulary):,} tokens are one). Leave --do_whole_word_mask away: "
                "characters are masked one by one."
            )
    if not mask.any():
        raise DataError(
            f"whole-word masking needs a WordPiece vocabulary, whose pieces inside a word begin with {prefix!r}; this "
            "tokeniser has none. Leave --do_whole_word_mask away."
        )
    return mask
