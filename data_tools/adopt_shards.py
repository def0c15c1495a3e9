"""A manifest for token shards that another tool wrote in Megatron's layout, so that training reads them as they are."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from data_tools.corpus_job import UNKNOWN
from tinybert_ds.data.indexed import FileRecord, hash_file, open_shard
from tinybert_ds.data.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    Sampling,
    ShardRecord,
    TokenDtype,
    write_manifest,
)
from tinybert_ds.data.tokenizer import SpecialIds, load_tokenizer, special_ids, tokenizer_fingerprint, tokenizer_json
from tinybert_ds.data.vocabulary import count_unknown, unknown_id
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.files import write_atomically
from tinybert_ds.progress import progress_bar

DTYPE_CODES: dict[str, dict[int, TokenDtype | None]] = {
    "deepspeed": {3: None, 4: None, 6: "uint16"},
    "megatron": {3: None, 4: None, 8: "uint16"},
}
"""What the codes of an index mean to a tool; None: the same to all of them."""

_CODE = struct.Struct("<9sQB")
_AT_ONCE = 1 << 22


def adopt_shards(directory: Path, model: str, lower_case: bool | None, dtype_codes: str | None) -> Manifest:
    """Check all shards of a directory and write a manifest and the tokeniser beside them; they stay as they are.

    Args:
        directory: holds `.bin/.idx` pairs, taken in lexical order; each sequence counts as a sentence.
        model: directory of the tokeniser that made the ids.
        dtype_codes: whose codes of dtypes the indexes have, "deepspeed" or "megatron"; None: they have none that
            differ.

    Raises:
        ConfigError: an index has a code that means different dtypes to different tools, and it is not said whose.
        DataError: there is a manifest already, there are no shards, or one is damaged or not of this tokeniser.
    """
    if not directory.is_dir():
        raise DataError(f"{str(directory)!r} is not a directory. Give the one with the .bin and .idx files.")
    if (directory / MANIFEST_NAME).exists():
        raise DataError(f"{str(directory)!r} has a {MANIFEST_NAME} already; remove it to adopt the shards anew.")
    names = sorted(path.stem for path in directory.glob("*.idx"))
    if not names:
        raise DataError(f"{str(directory)!r} holds no .idx file, and so no shards.")
    tokenizer = load_tokenizer(model, lower_case)
    special = special_ids(tokenizer)
    dtypes = {name: _stated_dtype(directory / f"{name}.idx", dtype_codes) for name in names}
    total = sum((directory / f"{name}.bin").stat().st_size for name in names if (directory / f"{name}.bin").is_file())
    records = []
    unknown, unknown_token = 0, unknown_id(tokenizer.backend_tokenizer)
    with progress_bar(total=total, desc="checking", unit="B", unit_scale=True) as bar:
        for name in names:
            record, count = _adopt(directory, name, dtypes[name], special, unknown_token)
            records.append(record)
            unknown += count
            bar.update(record.files[f"{name}.bin"].bytes)
    write_atomically(directory / TOKENIZER_NAME, tokenizer_json(tokenizer))
    manifest = Manifest(
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        special_ids=special,
        options={"adopted": True, "dtype_codes": dtype_codes},
        sampling=Sampling(),
        inputs={},
        shards=tuple(records),
        tokenizer_file=hash_file(directory / TOKENIZER_NAME),
        text_bytes=0,
        report={UNKNOWN: unknown},
    )
    write_manifest(directory, manifest)
    return manifest


def special_share(directory: Path, manifest: Manifest) -> float:
    """Share of special tokens among the first tokens of the first shard; tools other than ours may write them."""
    record = manifest.shards[0]
    tokens = open_shard(directory, record.name, record.dtype).tokens[:_AT_ONCE]
    return float(np.isin(tokens, manifest.special_ids.all_special).mean())


def _stated_dtype(path: Path, dtype_codes: str | None) -> TokenDtype | None:
    """The dtype that must be stated because the index's code is ambiguous; None where it is not."""
    with path.open("rb") as handle:
        header = handle.read(_CODE.size)
    code = _CODE.unpack(header)[2] if len(header) == _CODE.size else 3  # `open_shard` says what is wrong with it
    if code in (3, 4):
        return None
    meanings = {tool: codes[code] for tool, codes in DTYPE_CODES.items() if code in codes}
    if dtype_codes in meanings:
        return meanings[dtype_codes]
    if dtype_codes is not None or not meanings:
        allowed = sorted(DTYPE_CODES[dtype_codes or "megatron"])
        raise DataError(
            f"{str(path)!r} states the dtype code {code}, which is none of int16, int32 and uint16; supported are "
            f"{', '.join(map(str, allowed))}. Write the shards with one of these dtypes."
        )
    raise ConfigError(
        f"{str(path)!r} states the dtype code {code}, which is uint16 to {' and '.join(meanings)}, but another dtype "
        f"to other tools. State whose shards these are with --dtype_codes {'|'.join(DTYPE_CODES)}."
    )


def _adopt(
    directory: Path, name: str, dtype: TokenDtype | None, special: SpecialIds, unknown_token: int | None
) -> tuple[ShardRecord, int]:
    """Check the tokens of a shard, which are read once, in pieces; return its record and how many are unknown."""
    shard, unknown = open_shard(directory, name, dtype), 0
    for begin in range(0, len(shard.tokens), _AT_ONCE):
        tokens = shard.tokens[begin : begin + _AT_ONCE]
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= special.vocab_size:
            raise DataError(
                f"the shard {str(directory / name)!r} cannot be adopted: it holds ids from {low} to {high}, and the "
                f"vocabulary has ids from 0 to {special.vocab_size - 1}. Was it made with this --bert_model, and are "
                "--dtype_codes right?"
            )
        unknown += count_unknown(tokens, unknown_token)
    files: dict[str, FileRecord] = {f"{name}{end}": hash_file(directory / f"{name}{end}") for end in (".bin", ".idx")}
    counts = (shard.num_documents, len(shard.lengths), len(shard.tokens))
    return ShardRecord(name, *counts, files, sources=(), dtype=dtype), unknown
