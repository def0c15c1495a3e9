"""Reading a corpus: batches against the published arrays, padding, and the time to the first batch.

    python tests/benchmarks/bench_reading.py SHARDS [--rounds 5] [--gigabytes 1] [--readme SECTION]

SHARDS is an output of pregenerate_training_data.py; 25 MB of text are enough. One pass is one epoch of it in batches of
64 x 128, everything included: spans, pairs, masks, padding, tensors. The peer is the published dataset written anew:
arrays of padded rows, a tensor for each field of each row, torch's default collate; it masks nothing and pairs nothing,
because that was done when its files were made.

For the time to the first batch, the shards are repeated by links until they hold so many gigabytes of text.
Writes results/reading.csv and results/padding.csv and prints tables.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import RESULTS, Row, interleave, rows_of, table, update_readme, write_csv
from tinybert_ds.data.batching import token_counts
from tinybert_ds.data.blocks import COUNTS_DIRECTORY
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import Manifest, read_manifest, write_manifest
from tinybert_ds.types import Batch

BATCH_SIZE, LENGTH = 64, 128
PUBLISHED = "published arrays"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "pairs": {},
    "pairs, tokens masked": {"masked_lm_prob": 0.15},
    "pairs, words masked": {"masked_lm_prob": 0.15, "whole_word": True},
    "full sentences, tokens masked": {"masked_lm_prob": 0.15, "full_sentences": True},
}
PLACES = (0.0, 0.1, 0.5, 0.99)  # of an epoch


class PaddingRow(NamedTuple):
    """The share of computed tokens that are padding, over an epoch."""

    benchmark: str
    max_seq_length: int
    batch_size: int
    samples: str
    padding: float
    mean_length: float
    steps: int


class PublishedArrays(Dataset[tuple[Tensor, ...]]):
    """Rows in arrays, as the published dataset holds them after parsing its files."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.input_ids = _stack(batches, "input_ids", np.int32)
        self.input_masks = _stack(batches, "attention_mask", np.bool_)
        self.segment_ids = _stack(batches, "token_type_ids", np.bool_)
        self.lm_label_ids = np.full(self.input_ids.shape, -1, dtype=np.int32)
        self.is_nexts = np.zeros(len(self.input_ids), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, item: int) -> tuple[Tensor, ...]:
        rows = (self.input_ids, self.input_masks, self.segment_ids, self.lm_label_ids)
        return (*(torch.tensor(row[item].astype(np.int64)) for row in rows), torch.tensor(int(self.is_nexts[item])))


def _stack(batches: Sequence[Batch], name: str, dtype: type) -> NDArray[Any]:
    return np.concatenate([getattr(batch, name).numpy().astype(dtype) for batch in batches])


def open_source(directory: Path, **changes: Any) -> CorpusSource:
    """Return the source of a run with the published defaults."""
    arguments = {
        "split": "train",
        "eval_fraction": 0.0,
        "global_batch_size": BATCH_SIZE,
        "max_seq_length": LENGTH,
        "seed": 1,
        **changes,
    }
    return CorpusSource(directory, **arguments)


def read(source: CorpusSource, position: int) -> Batch:
    """Return an optimizer step's rows as one batch."""
    return source.micro_batches(0, position, rank=0, world_size=1, accumulation=1)[0]


def epoch_of(source: CorpusSource) -> Iterator[Batch]:
    """Yield the batches of the first epoch."""
    return (read(source, position) for position in range(source.steps_in_epoch(0)))


def measure_batches(directory: Path, rounds: int) -> list[Row]:
    """Return a row for each kind of sample, against the published arrays of the same epoch."""
    rows = []
    for name, changes in VARIANTS.items():
        arrays = PublishedArrays(list(epoch_of(open_source(directory, padding="reference", **changes))))

        def ours(changes: Mapping[str, Any] = changes) -> None:
            for _ in epoch_of(open_source(directory, **changes)):
                pass

        def published(arrays: PublishedArrays = arrays) -> None:
            for _ in DataLoader(arrays, batch_size=BATCH_SIZE, sampler=RandomSampler(arrays)):
                pass

        seconds = interleave({name: ours, PUBLISHED: published}, rounds)
        case = f"{BATCH_SIZE} x {LENGTH}"
        rows += rows_of("reading", case, seconds, peers={name: PUBLISHED}, samples=len(arrays))
        print(table(rows[-2:]), flush=True)
    return rows


def measure_padding(directory: Path, batch_sizes: Sequence[int], lengths: Sequence[int]) -> list[PaddingRow]:
    """Return the padding of an epoch in both kinds of samples."""
    rows = []
    for length in lengths:
        for name, packing in (("pairs", False), ("full sentences", True)):
            for batch_size in batch_sizes:
                arguments = {"max_seq_length": length, "global_batch_size": batch_size, "full_sentences": packing}
                source = open_source(directory, **arguments)
                counts = np.array([token_counts(batch) for batch in epoch_of(source)])
                real, computed = counts.sum(axis=0).tolist()
                mean_length = real / source.samples_in_epoch(0)
                rows.append(
                    PaddingRow("padding", length, batch_size, name, 1 - real / computed, mean_length, len(counts))
                )
                print(f"{length} tokens, batch {batch_size}, {name}: {rows[-1].padding:.2%} padding", flush=True)
    return rows


def measure_start(directory: Path, rounds: int) -> list[Row]:
    """Return the times from nothing to a batch at some places of an epoch, and of the first, uncached pass."""

    def start(place: float) -> Callable[[], None]:
        def run() -> None:
            source = open_source(directory)
            read(source, int(place * (source.steps_in_epoch(0) - 1)))

        return run

    def uncached() -> None:
        shutil.rmtree(directory / COUNTS_DIRECTORY, ignore_errors=True)
        start(0.0)()

    variants = {f"at {place:.0%} of the epoch": start(place) for place in PLACES}
    first = next(iter(variants))
    seconds = interleave({**variants, "at 0%, counting the samples first": uncached}, rounds)
    case = f"first batch, {read_manifest(directory).text_bytes / 1e9:.2g} GB of text"
    rows = rows_of("reading", case, seconds, peers=dict.fromkeys(variants, first))
    print(table(rows), flush=True)
    return rows


def repeat_corpus(directory: Path, target: Path, gigabytes: float) -> Path:
    """Make a corpus of so many gigabytes of text from links to another one's shards; return it."""
    manifest = read_manifest(directory)
    times = max(1, -(-int(gigabytes * 1e9) // manifest.text_bytes))
    target.mkdir(parents=True)
    records = []
    for number in range(times):
        for shard in manifest.shards:
            name = f"copy-{number:05d}-{shard.name}"
            for suffix in (".bin", ".idx"):
                (target / f"{name}{suffix}").symlink_to((directory / f"{shard.name}{suffix}").resolve())
            files = {f"{name}{Path(file).suffix}": record for file, record in shard.files.items()}
            records.append(replace(shard, name=name, files=files))
    for path in directory.glob("tokenizer*"):
        shutil.copy(path, target)
    repeated: Manifest = replace(manifest, shards=tuple(records), text_bytes=manifest.text_bytes * times)
    write_manifest(target, repeated)
    return target


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Time the reading of a corpus.", allow_abbrev=False)
    parser.add_argument("shards", type=Path, help="an output of pregenerate_training_data.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the corpus whose first batch is timed")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 64, 256, 1024], help="for the padding")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="for the padding")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of README.md")
    values = parser.parse_args(arguments)
    torch.set_num_threads(1)  # figures are per core
    padding = measure_padding(values.shards, values.batch_sizes, values.lengths)
    rows = measure_batches(values.shards, values.rounds)
    with tempfile.TemporaryDirectory() as folder:
        rows += measure_start(repeat_corpus(values.shards, Path(folder) / "repeated", values.gigabytes), values.rounds)
    write_csv(values.out / "padding.csv", padding)
    write_csv(values.out / "reading.csv", rows)
    if values.readme:
        update_readme(values.readme, rows)
    return rows


if __name__ == "__main__":
    main()
