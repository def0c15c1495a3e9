"""Batches of corpora: blocks in random order, samples in random order inside a window of blocks.

n samples of a window, B rows.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from tinybert_ds.data.batching import Padding, RowLayout, Rows, plan_window, rank_rows, step_batches
from tinybert_ds.data.blocks import Selection, Split, held_out_threshold
from tinybert_ds.data.corpus_checks import (
    check_arguments,
    check_documents,
    check_one_sampling,
    check_one_tokenizer,
    make_masking,
)
from tinybert_ds.data.manifest import Corpus, Sampling, open_corpus
from tinybert_ds.data.masking import mask_tokens
from tinybert_ds.data.mixture import Mixture
from tinybert_ds.data.order import Ints, make_key
from tinybert_ds.data.placement import Placement
from tinybert_ds.data.rows import Spans, Template, join_spans, pair_first_lengths, pair_spans
from tinybert_ds.data.samples import exchange_second_segments
from tinybert_ds.data.stream import Order, Stream
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.data.verification import Verification
from tinybert_ds.types import Batch

WINDOW_SAMPLES = 1 << 17
WINDOW_STEPS = 256
READ_ROWS = 512  # that a rank reads and masks at a time, of as many steps as that takes
_CACHED = 2


class _Epoch(NamedTuple):
    orders: list[Order]  # of each stream
    samples: int
    window_steps: int  # optimizer steps of a window; the last may have fewer
    key: int


class _Window(NamedTuple):
    spans: Spans
    first_spans: Ints  # (n,) of each sample
    first_lengths: Ints  # (n,) tokens of type 0
    sample_ids: Ints  # (n,)
    lengths: Ints  # (n,) tokens of each sample, special tokens included
    steps: list[Ints]  # rows of each optimizer step
    key: int


class _Share(NamedTuple):
    """The rows of one rank in some steps of a window, one step after the other."""

    rows: Rows
    token_begins: Ints  # (n + 1,)
    places: dict[int, int]  # number of a row in the window -> its place here

    def take(self, numbers: Ints) -> Rows | None:
        """Return neighbouring rows by their numbers in the window, None where they are another rank's."""
        begin = self.places.get(int(numbers[0]))
        if begin is None:
            return None
        end = begin + len(numbers)
        tokens = self.rows.tokens[self.token_begins[begin] : self.token_begins[end]]
        lengths, first_lengths, sample_ids = (column[begin:end] for column in self.rows[1:4])
        return Rows(tokens, lengths, first_lengths, sample_ids)


class CorpusSource:
    """Optimizer steps of one corpus, or of several joined or mixed; a `BatchSource`.

    Args:
        split: "train", or "eval": the held-out documents, in a fixed order, the same in every epoch and for
            every seed.
        eval_fraction: share of the documents that is held out, chosen by a hash of their number; 0 for none.
        max_seq_length: longest sample in tokens, special tokens included.
        seed: names order, spans, pairs and masks.
        weights: shares of the samples that each directory gives; an epoch ends with the first that ends. None: all
            directories are read to their ends, as if they were one.
        padding: to the step's longest row, or to max_seq_length.
        one_seq: no random second segments. This and the next five: None takes what the manifest says.
        full_sentences: samples are packed with sentences of one document after the other; there are no pairs.
        masked_lm_prob: share of tokens to mask; 0 changes nothing at all.
        short_seq_prob: share of documents cut into shorter samples; none in the eval split.
        max_samples: an epoch ends after so many samples.
        verification: checks the files in the background; the first damaged one ends the run.
        word_list: words of a language without spaces, for whole-word masking, see `load_word_list`.

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
        weights: Sequence[float] | None = None,
        padding: Padding = "valid",
        one_seq: bool | None = None,
        full_sentences: bool | None = None,
        masked_lm_prob: float | None = None,
        whole_word: bool | None = None,
        short_seq_prob: float | None = None,
        max_predictions_per_seq: int | None = None,
        max_samples: int | None = None,
        verification: Verification | None = None,
        word_list: str | None = None,
    ) -> None:
        paths = [directories] if isinstance(directories, str | Path) else directories
        corpora = [open_corpus(path) for path in paths]
        manifest = corpora[0].manifest
        check_one_tokenizer(corpora)
        self.special_ids: SpecialIds = manifest.special_ids
        self.tokenizer_fingerprint: str = manifest.tokenizer_fingerprint
        self.vocab_size: int = manifest.special_ids.vocab_size
        stated = {
            "max_seq_len": max_seq_length,
            "one_seq": one_seq,
            "full_sentences": full_sentences,
            "masked_lm_prob": masked_lm_prob,
            "whole_word": whole_word,
            "short_seq_prob": short_seq_prob,
            "max_predictions_per_seq": max_predictions_per_seq,
        }
        check_one_sampling(corpora, stated)
        self.sampling: Sampling = _resolve(manifest.sampling, stated)
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
        self._eval_fraction = eval_fraction
        self._weights = weights
        self._layout = RowLayout(padding, max_seq_length, self.special_ids.pad)
        self._template = _template(self.special_ids, self.sampling)
        self._masking = make_masking(corpora[0], self.sampling, word_list)
        self._corpora = corpora
        selections = [
            _select(corpus, split, eval_fraction, self.special_ids, self.sampling, self._template) for corpus in corpora
        ]
        check_documents(corpora, selections, eval_fraction, self.sampling)
        self._limit = selections[0].longest
        self._placement = Placement(corpora)
        numbers = range(len(corpora))
        members = [numbers] if weights is None else [numbers[i : i + 1] for i in numbers]
        self._streams = [Stream(corpora, mine, selections, self._placement) for mine in members]
        self._mixture = Mixture(weights or [1.0], period=WINDOW_SAMPLES)
        self._verification = verification
        self._lock = threading.RLock()  # so that no two threads make the same
        self._kept_epoch = lru_cache(maxsize=_CACHED)(self._make_epoch)
        self._window = lru_cache(maxsize=_CACHED)(self._make_window)
        self._share = lru_cache(maxsize=_CACHED)(self._make_share)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes the samples, by name: data, sampling, split; neither seed nor batch size nor padding."""
        words = None if self._masking is None else self._masking.words
        return {
            "data": [corpus.manifest.fingerprint for corpus in self._corpora],
            "corpus_weights": None if self._weights is None else list(self._weights),
            "sampling": asdict(self.sampling),
            "eval_fraction": self._eval_fraction,
            "max_train_samples": self._max_samples,
            **({} if words is None else {"word_list": words.fingerprint}),
        }

    @property
    def fingerprint(self) -> str:
        """A hash of the identity and the split."""
        return xxhash.xxh3_128_hexdigest(json.dumps([self._split, self.identity]).encode())

    def samples_in_epoch(self, epoch: int) -> int:
        """Samples of an epoch; they differ a little between epochs, because short documents are drawn anew."""
        return self._epoch(epoch).samples

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps of an epoch; only the last may be short."""
        return -(-self.samples_in_epoch(epoch) // self.global_batch_size)

    def samples_in_step(self, epoch: int, position: int) -> int:
        """Rows of the global batch at optimizer step `position` of `epoch`."""
        return min(self.global_batch_size, self.samples_in_epoch(epoch) - position * self.global_batch_size)

    def micro_batches(self, epoch: int, position: int, *, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """The micro-batches that `rank` takes in optimizer step `position` of `epoch` (see `BatchSource`).

        Raises:
            DataError: a file was found damaged in the meantime.
        """
        assert 0 <= position < self.steps_in_epoch(epoch), f"step {position} is not in epoch {epoch}"
        if self._verification is not None:
            self._verification.check()
        number, step = divmod(position, self._epoch(epoch).window_steps)
        epoch = 0 if self._split == "eval" else epoch
        together = max(1, READ_ROWS * world_size // self.global_batch_size)
        who: dict[str, Any] = {"rank": rank, "world_size": world_size, "accumulation": accumulation}
        with self._lock:
            window = self._window(epoch, number)
            share = self._share(epoch, number, step // together, together, **who)

        def fetch(rows: Ints) -> Rows:
            found = share.take(rows)
            return self._rows(window, rows) if found is None else found

        return step_batches(window.steps[step], window.lengths, fetch, self._layout, **who)

    def _epoch(self, epoch: int) -> _Epoch:
        with self._lock:
            return self._kept_epoch(0 if self._split == "eval" else epoch)

    def _make_share(
        self, epoch: int, number: int, group: int, together: int, *, rank: int, world_size: int, accumulation: int
    ) -> _Share:
        """A rank's rows of so many steps of a window at once: a call of numpy's costs as much for few rows."""
        window = self._window(epoch, number)
        steps = window.steps[group * together : (group + 1) * together]
        mine = [rank_rows(rows, rank=rank, world_size=world_size, accumulation=accumulation) for rows in steps]
        numbers = np.concatenate([part for parts in mine for part in parts])
        if len(numbers) == 0:  # a short step has fewer rows than there are ranks
            return _Share(Rows(numbers, numbers, numbers, numbers), np.zeros(1, dtype=np.int64), {})
        rows = self._rows(window, numbers)
        begins = np.concatenate([[0], np.cumsum(rows.lengths)])
        return _Share(rows, begins, dict(zip(numbers.tolist(), range(len(numbers)), strict=True)))

    def _make_epoch(self, epoch: int) -> _Epoch:
        key = make_key("eval") if self._split == "eval" else make_key("train", self._seed, epoch)
        orders = [stream.order(key, shuffled=self._split == "train") for stream in self._streams]
        samples = self._mixture.epoch_samples([order.samples for order in orders])
        if self._max_samples is not None:
            samples = min(samples, self._max_samples)
        return _Epoch(orders, samples, window_steps(samples, self.global_batch_size), key)

    def _make_window(self, epoch: int, number: int) -> _Window:
        plan = self._epoch(epoch)
        begin = number * plan.window_steps * self.global_batch_size
        end = min(begin + plan.window_steps * self.global_batch_size, plan.samples)
        key = make_key(plan.key, "window", number)
        parts = []
        for corpus, (stream, order) in enumerate(zip(self._streams, plan.orders, strict=True)):
            first, last = self._mixture.corpus_range(corpus, begin, end)
            if first < last:
                sample_ids = self._mixture.positions(corpus, first, last)
                parts.append(self._stream_rows(stream, order, (first, last), sample_ids, make_key(key, corpus)))
        spans = join_spans([part[0] for part in parts])
        first_lengths, sample_ids = (np.concatenate([part[place] for part in parts]) for place in (1, 2))
        lengths = spans.row_lengths(self._template)
        steps = plan_window(lengths, self.global_batch_size, key if self._split == "train" else None)
        return _Window(spans, spans.first_spans(), first_lengths, sample_ids, lengths, steps, plan.key)

    def _stream_rows(
        self, stream: Stream, order: Order, places: tuple[int, int], sample_ids: Ints, key: int
    ) -> tuple[Spans, Ints, Ints]:
        """Rows of some samples of a stream, their tokens of type 0, and their numbers."""
        if self.sampling.full_sentences:
            packed = stream.packed(order, *places)
            return packed, packed.row_lengths(self._template), sample_ids
        samples = stream.pairs(order, *places, sample_ids)
        if not self.sampling.one_seq:
            samples = exchange_second_segments(key, samples, self._limit)
        return pair_spans(samples), pair_first_lengths(samples, self._template), sample_ids

    def _rows(self, window: _Window, rows: Ints) -> Rows:
        """Rows of a window as tokens, with their special tokens and masks."""
        tokens = window.spans.of(rows, window.first_spans).tokens(self._template, self._placement.gather)
        lengths, sample_ids = window.lengths[rows], window.sample_ids[rows]
        if self._masking is not None:
            tokens = mask_tokens(make_key(window.key, "mask"), sample_ids, tokens, lengths, self._masking)
        return Rows(tokens, lengths, window.first_lengths[rows], sample_ids)


def window_steps(samples: int, global_batch_size: int) -> int:
    """Optimizer steps of each window of an epoch: windows of equal size, so that no small one is left at the end.

    Few rows of many lengths make steps of mixed lengths, which are padding for the most part.
    """
    wanted = max(WINDOW_STEPS, -(-WINDOW_SAMPLES // global_batch_size))
    steps = -(-samples // global_batch_size)
    return -(-steps // max(1, round(steps / wanted)))


def _template(special: SpecialIds, sampling: Sampling) -> Template:
    """Special tokens of a row; in packed samples a separator stands between two documents."""
    return Template(special.prefix, (special.sep,) if sampling.full_sentences else special.middle, special.suffix)


def _select(
    corpus: Corpus, split: Split, eval_fraction: float, special: SpecialIds, sampling: Sampling, template: Template
) -> Selection:
    """Which documents of a corpus are read, and how they are cut."""
    packing = sampling.full_sentences
    overhead = len(special.prefix) + len(special.suffix) + (0 if packing else len(special.middle))
    return Selection(
        split=split,
        held_out_below=held_out_threshold(corpus.manifest.documents, eval_fraction),
        longest=sampling.max_seq_len - overhead,
        overhead=overhead,
        short_seq_prob=0.0 if packing or split == "eval" else sampling.short_seq_prob,
        separator=len(template.joiner) if packing else None,
    )


def _resolve(sampling: Sampling, stated: dict[str, Any]) -> Sampling:
    """The manifest's sampling with what the run states itself; samples of one segment are not packed ones."""
    if stated["one_seq"] and stated["full_sentences"] is None:
        stated = {**stated, "full_sentences": False}
    return replace(sampling, **{name: value for name, value in stated.items() if value is not None})
