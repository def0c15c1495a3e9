"""Blocks of a task's rows, augmented; what a worker process does.

In half precision a row's result depends on what is computed together with it. That is its block, and a file is cut into
blocks by the kind of device alone, so that any number of workers and ranks writes the same file in every precision.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.glove import open_cache
from data_tools.masked_words import MaskedWordModel
from data_tools.neighbours import Neighbours
from data_tools.orphans import end_with_parent
from data_tools.sentence_words import SentenceSplitter
from data_tools.teacher_filter import TeacherJudge, is_sure
from data_tools.text_variants import draw_variants, find_candidates
from tinybert_ds.arguments.augment import AugmentArguments
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.data.word_list import load_word_list
from tinybert_ds.hardware import choose_float32_products

_BLOCKS_AHEAD_PER_WORKER = 2
BATCH_TOKENS = {"cpu": 2048, "cuda": 1 << 16}


@dataclass(frozen=True)
class AugmentationSettings:
    """Everything that a worker needs to know."""

    options: AugmentArguments
    spec: TaskSpec
    text_columns: tuple[int, ...]
    vectors: Path | None  # memory-mapped word vectors; None: words of several pieces stay
    dtype: torch.dtype
    device: torch.device

    @property
    def copies(self) -> int:
        """Variants to draw of each text."""
        return self.spec.augmented_copies if self.options.N is None else self.options.N


class Block(NamedTuple):
    """Rows of a file that are augmented together."""

    number: int
    row_numbers: list[int]  # in the file
    rows: list[list[str]]
    labels: list[int] | None  # class ids; None of a regression


class AugmentedBlock(NamedTuple):
    """The rows of a block with their variants behind them, as lines, and what was counted on the way."""

    number: int
    lines: list[str]
    counts: Counter[str]


class RowAugmenter:
    """Augments blocks; keeps models and vectors between them."""

    def __init__(self, settings: AugmentationSettings) -> None:
        options, device = settings.options, settings.device
        if device.type == "cpu":
            torch.set_num_threads(1)  # a worker is a core; sums in another order would give other last digits
            choose_float32_products(device, onednn=not options.no_onednn_matmul)
        self._settings = settings
        tokenizer = load_tokenizer(options.pretrained_bert_model, options.lower_case)
        self._neighbours = None
        if settings.vectors is not None:
            self._neighbours = Neighbours(open_cache(settings.vectors), options.M)
        words = None if options.word_list is None else load_word_list(options.word_list, tokenizer.get_vocab())
        self._splitter = SentenceSplitter(tokenizer, words)
        self._model = MaskedWordModel(
            options.pretrained_bert_model,
            tokenizer,
            dtype=settings.dtype,
            device=device,
            batch_tokens=BATCH_TOKENS[device.type],
        )
        self._judge = None
        if options.teacher_filter is not None:
            self._judge = TeacherJudge(
                options.teacher_filter,
                settings.spec,
                lower_case=options.lower_case,
                stated_labels=options.stated_labels,
                dtype=settings.dtype,
                device=device,
            )

    def augment(self, block: Block) -> AugmentedBlock:
        """Return the rows of a block, each with its variants behind it.

        A variant has one text replaced; of a pair, the other text stays as it was.
        """
        columns = self._settings.text_columns
        texts = [row[column] for row in block.rows for column in columns]
        keys = [(number, side) for number in block.row_numbers for side in range(len(columns))]
        found = iter(self._variants(texts, keys))
        variants = [[_with(row, column, text) for column in columns for text in next(found)] for row in block.rows]
        counts = Counter(rows=len(block.rows), variants=sum(map(len, variants)))
        if self._judge is not None:
            variants = self._filtered(self._judge, block, variants, counts)
        lines = ["\t".join(fields) for row, own in zip(block.rows, variants, strict=True) for fields in (row, *own)]
        return AugmentedBlock(block.number, lines, counts)

    def _variants(self, texts: Sequence[str], keys: Sequence[Sequence[int]]) -> list[list[str]]:
        """Return the variants of each text; equal texts are looked at once and drawn from each by its own key."""
        options = self._settings.options
        different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        sentences = self._splitter.split(list(different))
        candidates = find_candidates(sentences, self._model, self._neighbours, count=options.M, chinese=options.chinese)
        return [
            draw_variants(
                sentences[different[text]],
                candidates[different[text]],
                count=self._settings.copies,
                probability=options.p,
                seed=(options.seed, *key),
                chinese=options.chinese,
            )
            for text, key in zip(texts, keys, strict=True)
        ]

    def _filtered(
        self, judge: TeacherJudge, block: Block, variants: list[list[list[str]]], counts: Counter[str]
    ) -> list[list[list[str]]]:
        """Drop variants of whose class the teacher is not sure enough; count them by the label of their row."""
        assert block.labels is not None
        columns, confidence = self._settings.text_columns, self._settings.options.teacher_confidence
        flat = [fields for own in variants for fields in own]
        texts = tuple([fields[column] for fields in flat] for column in columns)
        judged: Iterable[NDArray[np.float32]] = judge.probabilities(texts, near=confidence) if flat else ()
        judgements = iter(judged)
        kept: list[list[list[str]]] = []
        for own, label in zip(variants, block.labels, strict=True):
            name = self._settings.spec.label_names[label]
            kept.append([])
            for fields in own:
                probabilities = next(judgements)
                counts[f"variants of {name}"] += 1
                if not is_sure(probabilities, confidence):
                    counts["dropped"] += 1
                    counts[f"dropped of {name}"] += 1
                    continue
                counts["agreeing"] += int(probabilities.argmax() == label)
                kept[-1].append(fields)
        return kept


def augment_in_workers(
    blocks: Iterable[Block], settings: AugmentationSettings, num_workers: int
) -> Iterator[AugmentedBlock]:
    """Augment blocks in so many processes; results come in the order of the blocks."""
    # Forked from a server that has no threads yet: a fork of this process may hang, and a new one takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(num_workers, context, initializer=end_with_parent) as pool:
        pending: deque[Future[AugmentedBlock]] = deque()
        try:
            for block in blocks:
                pending.append(pool.submit(_augment_in_worker, settings, block))
                if len(pending) > _BLOCKS_AHEAD_PER_WORKER * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _with(row: list[str], column: int, text: str) -> list[str]:
    return [*row[:column], text, *row[column + 1 :]]


# A worker process has no other place for what it keeps between two blocks; empty in the process that starts workers.
_worker_augmenter: list[RowAugmenter] = []


def _augment_in_worker(settings: AugmentationSettings, block: Block) -> AugmentedBlock:
    if not _worker_augmenter:
        _worker_augmenter.append(RowAugmenter(settings))
    return _worker_augmenter[0].augment(block)
