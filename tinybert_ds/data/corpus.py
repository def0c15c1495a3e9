"""Batches of a corpus: blocks in random order, samples in random order inside a window of blocks.

n samples of a window, B rows, P, M and F the special tokens before, between and after the segments.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xxhash

from tinybert_ds.data.batching import Padding, RowLayout, Rows, plan_window, step_batches
from tinybert_ds.data.blocks import Selection, Split, count_chunks, held_out_threshold, read_block
from tinybert_ds.data.corpus_checks import check_arguments, check_documents, check_one_tokenizer, make_masking
from tinybert_ds.data.manifest import Corpus, Sampling, open_corpus
from tinybert_ds.data.masking import mask_tokens
from tinybert_ds.data.order import Ints, make_key, permutation
from tinybert_ds.data.placement import Placement, span_indices
from tinybert_ds.data.samples import Samples, exchange_second_segments, make_samples
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.types import Batch

WINDOW_SAMPLES = 1 << 16
WINDOW_STEPS = 64
_CACHED = 2

Value = TypeVar("Value")


class _Epoch(NamedTuple):
    blocks: Ints  # order of the blocks
    ends: Ints  # samples up to the end of each block, in that order
    key: int


class _Window(NamedTuple):
    samples: Samples
    lengths: Ints  # (n,) tokens of each sample, special tokens included
    steps: list[Ints]  # rows of each optimizer step
    key: int


class CorpusSource:
    """Optimizer steps of one corpus or several joined; a `BatchSource`.

    Args:
        directories: outputs of pregenerate_training_data.py.
        split: "train", or "eval": the held-out documents, in a fixed order, the same in every epoch and for
            every seed.
        eval_fraction: share of the documents that is held out, chosen by a hash of their number; 0 for none.
        global_batch_size: rows of an optimizer step.
        max_seq_length: longest sample in tokens, special tokens included.
        seed: names order, spans, pairs and masks.
        padding: to the step's longest row, or to max_seq_length.
        one_seq: no random second segments. This and the next four: None takes what the manifest says.
        masked_lm_prob: share of tokens to mask; 0 changes nothing at all.
        whole_word: mask whole words.
        short_seq_prob: share of documents cut into shorter samples; none in the eval split.
        max_predictions_per_seq: most masked tokens of a sample.
        type_vocab_size: token types of the model; with fewer than 2, all are 0.
        max_samples: an epoch ends after so many samples.

    Raises:
        ConfigError: arguments out of range.
        DataError: unusable corpora, corpora of different tokenisers, or too few documents.
    """

    def __init__(
        self,
        directories: str | Path | Sequence[str | Path],
        *,
        split: Split,
        eval_fraction: float,
        global_batch_size: int,
        max_seq_length: int,
        seed: int,
        padding: Padding = "valid",
        one_seq: bool | None = None,
        masked_lm_prob: float | None = None,
        whole_word: bool | None = None,
        short_seq_prob: float | None = None,
        max_predictions_per_seq: int | None = None,
        type_vocab_size: int = 2,
        max_samples: int | None = None,
    ) -> None:
        paths = [directories] if isinstance(directories, str | Path) else directories
        corpora = [open_corpus(path) for path in paths]
        manifest = corpora[0].manifest
        check_one_tokenizer(corpora)
        self.special_ids: SpecialIds = manifest.special_ids
        self.tokenizer_fingerprint: str = manifest.tokenizer_fingerprint
        self.vocab_size: int = manifest.special_ids.vocab_size
        self.sampling: Sampling = _resolve(
            manifest.sampling,
            max_seq_len=max_seq_length,
            one_seq=one_seq,
            masked_lm_prob=masked_lm_prob,
            whole_word=whole_word,
            short_seq_prob=short_seq_prob,
            max_predictions_per_seq=max_predictions_per_seq,
        )
        check_arguments(
            self.sampling,
            self.special_ids,
            split=split,
            eval_fraction=eval_fraction,
            global_batch_size=global_batch_size,
            max_samples=max_samples,
        )
        self.global_batch_size = global_batch_size
        self._split: Split = split
        self._seed = seed
        self._max_samples = max_samples
        self._limit = max_seq_length - sum(len(part) for part in self._template)
        self._layout = RowLayout(padding, max_seq_length, self.special_ids.pad, type_vocab_size)
        self._masking = make_masking(corpora[0], self.sampling)
        self._corpora = corpora
        self._selections = _select(corpora, split, eval_fraction, self._limit, self.sampling)
        check_documents(corpora, self._selections, eval_fraction, self.sampling.one_seq)
        self._placement = Placement(corpora)
        window_steps = max(WINDOW_STEPS, -(-WINDOW_SAMPLES // global_batch_size))
        self._window_samples = window_steps * global_batch_size
        self._eval_fraction = eval_fraction
        self._lock = threading.RLock()
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Names the corpora and all that changes their samples, but neither seed nor batch size nor padding."""
        content = [
            [corpus.manifest.fingerprint for corpus in self._corpora],
            asdict(self.sampling),
            [self._split, self._eval_fraction, self._max_samples],
        ]
        return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())

    def samples_in_epoch(self, epoch: int) -> int:
        """Samples of an epoch; they differ a little between epochs, because short documents are drawn anew."""
        ends = self._epoch(epoch).ends
        total = int(ends[-1])
        return total if self._max_samples is None else min(total, self._max_samples)

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps of an epoch; only the last may be short."""
        return -(-self.samples_in_epoch(epoch) // self.global_batch_size)

    def samples_in_step(self, epoch: int, position: int) -> int:
        """Rows of the global batch at optimizer step `position` of `epoch`."""
        return min(self.global_batch_size, self.samples_in_epoch(epoch) - position * self.global_batch_size)

    def micro_batches(self, epoch: int, position: int, *, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """The micro-batches that `rank` takes in optimizer step `position` of `epoch` (see `BatchSource`)."""
        assert 0 <= position < self.steps_in_epoch(epoch), f"step {position} is not in epoch {epoch}"
        steps_in_window = self._window_samples // self.global_batch_size
        window = self._window(epoch, position // steps_in_window)
        return step_batches(
            window.steps[position % steps_in_window],
            window.lengths,
            lambda rows: self._rows(window, rows),
            self._layout,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
        )

    @property
    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return self.special_ids.prefix, self.special_ids.middle, self.special_ids.suffix

    def _epoch(self, epoch: int) -> _Epoch:
        with self._lock:
            return _cached(self._epochs, 0 if self._split == "eval" else epoch, self._make_epoch)

    def _window(self, epoch: int, number: int) -> _Window:
        with self._lock:
            return _cached(self._windows, (0 if self._split == "eval" else epoch, number), self._make_window)

    def _make_epoch(self, epoch: int) -> _Epoch:
        key = make_key("eval") if self._split == "eval" else make_key("train", self._seed, epoch)
        parts = zip(self._corpora, self._selections, strict=True)
        counts = np.concatenate([count_chunks(corpus, selection, key) for corpus, selection in parts])
        blocks = np.arange(len(counts))
        if self._split == "train":
            blocks = permutation(make_key(key, "blocks"), len(counts))
        return _Epoch(blocks, np.cumsum(counts[blocks]), key)

    def _make_window(self, epoch_and_number: tuple[int, int]) -> _Window:
        epoch, number = epoch_and_number
        plan = self._epoch(epoch)
        begin = number * self._window_samples
        end = min(begin + self._window_samples, self.samples_in_epoch(epoch))
        first, last = np.searchsorted(plan.ends, [begin, end - 1], side="right")
        parts = [self._block_samples(plan, place, begin, end) for place in range(first, last + 1)]
        samples = Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        key = make_key(plan.key, "window", number)
        if not self.sampling.one_seq:
            samples = exchange_second_segments(key, samples, self._limit)
        prefix, middle, suffix = (len(part) for part in self._template)
        two = samples.second_length > 0
        lengths = prefix + samples.first_length + two * (middle + samples.second_length) + suffix
        shuffle = key if self._split == "train" else None
        return _Window(samples, lengths, plan_window(lengths, self.global_batch_size, shuffle), plan.key)

    def _block_samples(self, plan: _Epoch, place: int, begin: int, end: int) -> Samples:
        """The samples of the block at `place` in the order that lie in positions [begin, end) of the epoch."""
        placed, number = self._placement.find_block(int(plan.blocks[place]))
        selection = self._selections[placed.corpus]
        block = read_block(placed.shard, placed.first_document, number, selection, plan.key)
        block_end = int(plan.ends[place])
        sample_ids = np.arange(block_end - len(block.chunks.first), block_end)
        samples = make_samples(
            plan.key,
            sample_ids,
            block.chunks,
            block.addresses + placed.token_base,
            block.documents + placed.document_base,
        )
        inside = (sample_ids >= begin) & (sample_ids < end)
        return Samples(*(column[inside] for column in samples))

    def _rows(self, window: _Window, rows: Ints) -> Rows:
        """Rows of a window as tokens, with their special tokens and masks."""
        samples = Samples(*(column[rows] for column in window.samples))
        lengths = window.lengths[rows]
        prefix, middle, suffix = (np.array(part, dtype=np.int64) for part in self._template)
        two = samples.second_length > 0
        begins = np.cumsum(lengths) - lengths
        after_first = begins + len(prefix) + samples.first_length
        tokens = np.empty(lengths.sum(), dtype=np.int64)
        tokens[begins[:, None] + np.arange(len(prefix))] = prefix
        tokens[span_indices(begins + len(prefix), samples.first_length)] = self._placement.gather(
            samples.first_start, samples.first_length
        )
        tokens[after_first[two][:, None] + np.arange(len(middle))] = middle
        tokens[span_indices(after_first + len(middle), samples.second_length)] = self._placement.gather(
            samples.second_start, samples.second_length
        )
        tokens[(begins + lengths - len(suffix))[:, None] + np.arange(len(suffix))] = suffix
        if self._masking is not None:
            mask_key = make_key(window.key, "mask")
            tokens = mask_tokens(mask_key, samples.sample_ids, tokens, lengths, self._masking)
        first_lengths = len(prefix) + samples.first_length + np.where(two, len(middle), len(suffix))
        return Rows(tokens, lengths, first_lengths, samples.sample_ids)


def _select(
    corpora: Sequence[Corpus], split: Split, eval_fraction: float, longest: int, sampling: Sampling
) -> list[Selection]:
    """The documents of the split, for each corpus."""
    short_seq_prob = sampling.short_seq_prob if split == "train" else 0.0
    thresholds = [held_out_threshold(corpus.manifest.documents, eval_fraction) for corpus in corpora]
    return [Selection(split, threshold, longest, short_seq_prob) for threshold in thresholds]


def _resolve(sampling: Sampling, **stated: Any) -> Sampling:
    """The manifest's sampling with what the run states itself."""
    return replace(sampling, **{name: value for name, value in stated.items() if value is not None})


def _cached(cache: OrderedDict, name: object, make: Callable[..., Value]) -> Value:
    if name not in cache:
        cache[name] = make(name)
        while len(cache) > _CACHED:
            cache.popitem(last=False)
    cache.move_to_end(name)
    return cache[name]
