"""Corpora of given token ids, written without a tokeniser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinybert_ds.data.indexed import ShardWriter, hash_file, token_dtype
from tinybert_ds.data.manifest import TOKENIZER_NAME, Manifest, Sampling, ShardRecord, SourceRange, write_manifest
from tinybert_ds.data.tokenizer import SpecialIds

Document = Sequence[Sequence[int]]  # token ids of its sentences

VOCABULARY = 1000
FIRST_CONTINUATION = 900  # ids from here on are pieces inside a word
SPECIAL_IDS = SpecialIds(
    cls=2,
    sep=3,
    pad=0,
    mask=4,
    vocab_size=VOCABULARY,
    prefix=(2,),
    middle=(3,),
    suffix=(3,),
    all_special=(0, 1, 2, 3, 4),
)
ROBERTA_IDS = SPECIAL_IDS._replace(middle=(3, 3))


def write_corpus(
    directory: Path,
    documents: Sequence[Document],
    *,
    documents_per_shard: int | None = None,
    sampling: Sampling | None = None,
    special_ids: SpecialIds = SPECIAL_IDS,
    tokenizer_fingerprint: str = "a tokeniser",
) -> Path:
    """Write a finished corpus directory; return it."""
    directory.mkdir(parents=True, exist_ok=True)
    records = []
    step = documents_per_shard or len(documents)
    for number, begin in enumerate(range(0, len(documents), step)):
        writer = ShardWriter(directory, f"shard-{number:05d}", token_dtype(special_ids.vocab_size))
        for document in documents[begin : begin + step]:
            tokens = np.array([token for sentence in document for token in sentence], dtype=np.int64)
            lengths = np.array([len(sentence) for sentence in document])
            writer.add_sentences(tokens, lengths, np.array([len(document)]))
        files = writer.finish()
        counts = (writer.num_documents, writer.num_sentences, writer.num_tokens)
        records.append(ShardRecord(writer.name, *counts, files, (SourceRange("made up", begin, begin + step),)))
    pieces = {(f"##{token}" if token >= FIRST_CONTINUATION else str(token)): token for token in range(VOCABULARY)}
    (directory / TOKENIZER_NAME).write_text(json.dumps({"model": {"vocab": pieces}}), encoding="utf-8")
    manifest = Manifest(
        tokenizer_fingerprint=tokenizer_fingerprint,
        special_ids=special_ids,
        options={},
        sampling=sampling or Sampling(),
        inputs={},
        shards=tuple(records),
        tokenizer_file=hash_file(directory / TOKENIZER_NAME),
        text_bytes=0,
    )
    write_manifest(directory, manifest)
    return directory


def random_documents(
    count: int, *, sentences: tuple[int, int] = (1, 12), length: tuple[int, int] = (1, 30), seed: int = 0
) -> list[list[list[int]]]:
    """Documents of random ids of 5..899, none special; bounds of sentences and lengths are inclusive."""
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(5, FIRST_CONTINUATION, size=rng.integers(length[0], length[1] + 1)).tolist() for _ in range(n)]
        for n in rng.integers(sentences[0], sentences[1] + 1, size=count)
    ]


def numbered_documents(count: int, sentences: int, length: int) -> list[list[list[int]]]:
    """Documents whose tokens are all different as long as they fit the vocabulary: 5, 6, 7, ..."""
    tokens = iter(range(5, VOCABULARY))
    return [[[next(tokens) for _ in range(length)] for _ in range(sentences)] for _ in range(count)]
