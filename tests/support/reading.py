"""Reading small corpora whole: sources, their steps, and the rows of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.corpora import SPECIAL_IDS
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.types import Batch


def source(directory: Path | Sequence[Path], **changes: Any) -> CorpusSource:
    """Return the training split of a corpus, in batches of 16 unless changed."""
    arguments: dict[str, Any] = {
        "split": "train",
        "eval_fraction": 0.0,
        "global_batch_size": 16,
        "max_seq_length": 48,
        "seed": 1,
        **changes,
    }
    return CorpusSource(directory, **arguments)


def step(reader: CorpusSource, position: int, epoch: int = 0) -> Batch:
    """Return a step as a single rank reads it."""
    (batch,) = reader.micro_batches(epoch, position, rank=0, world_size=1, accumulation=1)
    return batch


def epoch_of(reader: CorpusSource, epoch: int = 0) -> list[Batch]:
    """Return all steps of an epoch."""
    return [step(reader, position, epoch) for position in range(reader.steps_in_epoch(epoch))]


def text_rows(batches: list[Batch]) -> list[list[int]]:
    """Rows without padding."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def tokens_of(rows: list[list[int]]) -> Counter:
    """Count the tokens of rows, special ones left out."""
    return Counter(token for row in rows for token in row if token not in SPECIAL_IDS.all_special)


def all_tokens(documents: Sequence[Sequence[Sequence[int]]]) -> Counter:
    """Count the tokens of documents."""
    return Counter(token for document in documents for sentence in document for token in sentence)
