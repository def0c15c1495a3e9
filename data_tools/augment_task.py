"""Writes train_aug.tsv beside a task's train.tsv (arXiv 1909.10351, section 3.2)."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.augment_rows import AugmentationSettings, AugmentedBlock, Block, RowAugmenter, augment_in_workers
from data_tools.augmentation_files import AugmentationFiles
from data_tools.glove import build_cache, cache_directory
from data_tools.ranks import Ranks, find_ranks
from data_tools.sentence_words import SentenceSplitter
from tinybert_ds.arguments import identity_of, parse_arguments
from tinybert_ds.arguments.augment import AugmentArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.data.indexed import FileRecord, hash_file
from tinybert_ds.data.table_formats import augmented_split
from tinybert_ds.data.task_files import content_files, read_labelled_blocks, split_files, without_tabs
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tasks import find_task, find_task_folder
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from tinybert_ds.data.vocabulary import describe_unknown, judge_unknown
from tinybert_ds.data.word_list import load_word_list
from tinybert_ds.errors import ConfigError, raise_all
from tinybert_ds.hardware import device_of_rank, inference_dtype, precision_problems
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.shared_work.claims import POLL_SECONDS
from tinybert_ds.targets import target_of

RULE_VERSION = 4
"""Raised whenever the same settings give another file than before."""

_COUNTED_ROWS = 10_000  # at a time
BLOCK_ROWS = {"cpu": 32, "cuda": 512}
"""What is computed together, which in half precision decides about near ties: part of what a file is made of."""
_PATIENCE_SECONDS = 120.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Augment the task that the command line names; say what was made."""
    options, problems = parse_arguments(AugmentArguments, arguments)
    ranks = find_ranks()
    device = device_of_rank(ranks.local_rank, no_cuda=options.no_cuda)
    raise_all([*problems, *_machine_problems(options, device)])
    spec, folder = _task(options)
    rows = _read_rows(spec, folder)
    output = folder / augmented_split(spec.splits["train"]).file
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{output.parent}, where {output.name} belongs, cannot be written; copy the task's files elsewhere"
        )
    vectors = None
    if options.glove_embs is not None:
        vectors = cache_directory(Path(options.glove_embs), options.glove_vocab_size, output.parent)
    dtype = inference_dtype(device, options.dtype)
    settings = AugmentationSettings(options, spec, rows.text_columns, vectors, dtype, device)
    files = AugmentationFiles(output, _identity(settings, rows, ranks))
    counts = files.finished_counts()
    if counts is not None:
        if ranks.rank == 0:
            print(f"{output} is there already, made of the same; nothing to do.")
            _print_counts(counts, rows, settings)
        return
    begin = time.monotonic()
    one_worker = device.type != "cpu" or ranks.size > 1
    num_workers = options.num_workers or (1 if one_worker else len(os.sched_getaffinity(0)))
    augmenter = RowAugmenter(settings)  # loads the models, and so checks them before anything is written
    if ranks.rank == 0:
        _judge_words(rows, options)
    if not files.begin():
        return
    if ranks.rank == 0:
        print(_description(spec, rows, settings, num_workers, ranks), flush=True)
    blocks = _Blocks(rows, BLOCK_ROWS[device.type])
    missing = files.unfinished_blocks(blocks.count)
    own = [number for number in missing if number % ranks.size == ranks.rank]
    if num_workers > 1:
        made = augment_in_workers(blocks.take(own), settings, num_workers)
        del augmenter  # each worker has its own
    else:
        made = map(augmenter.augment, blocks.take(own))
    _write(made, blocks, files, missing, ranks)
    if ranks.rank == 0:
        counts = files.finish(rows.header, blocks.count)
        print(f"{output}: written in {time.monotonic() - begin:.0f} s")
        _print_counts(counts, rows, settings)


@dataclass(frozen=True)
class _Rows:
    """The rows to augment, as tab-separated lines: with a string for each field they would take twice the memory."""

    path: Path  # of the first file
    hashes: list[FileRecord]  # of all files
    header: str | None
    lines: list[str]
    labels: NDArray[np.generic] | None  # class ids; None of scores
    text_columns: tuple[int, ...]
    skipped_rows: int


def _read_rows(spec: TaskSpec, folder: Path) -> _Rows:
    lines: list[str] = []
    labels = []
    skipped_rows = 0
    paths = split_files(spec, folder, "train")
    for block, block_labels in read_labelled_blocks(spec, folder, "train"):
        table = without_tabs(block, spec.splits["train"].text_format)
        lines += ["\t".join(fields) for _, fields in table.rows]
        labels.append(block_labels)
        skipped_rows += table.skipped_rows
    header = None if table.header is None else "\t".join(table.header)
    known = [part for part in labels if part is not None and target_of(spec).exclusive]
    hashes = [hash_file(file) for file in content_files(paths)]
    ids = np.concatenate(known) if known else None
    return _Rows(paths[0], hashes, header, lines, ids, table.text_columns, skipped_rows)


class _Blocks:
    """The rows of a task in blocks of so many, those that share a text beside each other."""

    def __init__(self, rows: _Rows, block_rows: int) -> None:
        self._rows, self._size = rows, block_rows
        self._order = group_by_text(rows.lines, rows.text_columns)

    @property
    def count(self) -> int:
        """How many blocks there are; the last one may be shorter."""
        return -(-len(self._rows.lines) // self._size)

    def rows_without(self, numbers: Sequence[int]) -> int:
        """How many rows all blocks but these have."""
        count = len(self._rows.lines)
        return count - sum(min(self._size, count - number * self._size) for number in numbers)

    def take(self, numbers: Sequence[int]) -> Iterator[Block]:
        """The blocks of these numbers."""
        for number in numbers:
            part = self._order[number * self._size : (number + 1) * self._size]
            labels = None if self._rows.labels is None else self._rows.labels[part].tolist()
            places = part.tolist()
            yield Block(number, places, [self._rows.lines[place].split("\t") for place in places], labels)


def group_by_text(lines: Sequence[str], columns: Sequence[int]) -> NDArray[np.int64]:
    """Return an order of tab-separated rows in which rows with one text follow each other.

    A block looks at equal texts once, and of the pairs of MNLI three share a premise. The text is the one that comes
    again most; rows that share none keep their order.
    """
    groups = []
    for column in columns:
        first: dict[str, int] = {}
        groups.append([first.setdefault(line.split("\t")[column], number) for number, line in enumerate(lines)])
    fewest = min(groups, key=lambda group: len(set(group)))
    return np.argsort(np.array(fewest, dtype=np.int64), kind="stable")


def _write(
    made: Iterable[AugmentedBlock], blocks: _Blocks, files: AugmentationFiles, missing: Sequence[int], ranks: Ranks
) -> None:
    """Keep this rank's blocks as they are made; on rank 0, wait for those of the others and show how far all are."""
    bar: Any = tqdm(
        total=blocks.rows_without([]),
        initial=blocks.rows_without(missing),
        desc="augmenting",
        unit="row",
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
        disable=ranks.rank > 0,
    )

    def look() -> bool:
        left = files.unfinished_blocks(blocks.count)
        bar.update(blocks.rows_without(left) - bar.n)
        return not left

    with bar:
        for block in made:
            files.write_block(block)
            if ranks.rank == 0:
                look()
        reminder_at = time.monotonic() + _PATIENCE_SECONDS
        while ranks.rank == 0 and not look():
            if time.monotonic() > reminder_at:
                print(
                    f"still waiting for blocks of other ranks in {files.parts}; all ranks need the same files and "
                    "settings, and this folder on a disk that all hosts share",
                    file=sys.stderr,
                    flush=True,
                )
                reminder_at = math.inf
            time.sleep(POLL_SECONDS)


def _identity(settings: AugmentationSettings, rows: _Rows, ranks: Ranks) -> dict[str, Any]:
    """Everything that decides about the output, by the name a user knows it by; checks the models' directories."""
    options, teacher = settings.options, settings.options.teacher_filter
    tokenizer = load_tokenizer(options.pretrained_bert_model, options.lower_case)
    SentenceSplitter(tokenizer)
    glove, words = None, {}
    if options.glove_embs is not None and settings.vectors is not None:
        first = ranks.local_rank == 0
        glove = build_cache(Path(options.glove_embs), options.glove_vocab_size, settings.vectors, first=first)
    if options.word_list is not None:
        words = {"--word_list": load_word_list(options.word_list, tokenizer.get_vocab()).fingerprint}
    resolved = {
        "glove_vocab_size": None if glove is None else options.glove_vocab_size,
        "N": settings.copies,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "teacher_confidence": None if teacher is None else options.teacher_confidence,
    }
    return {
        "rule": RULE_VERSION,
        "rows of a block": BLOCK_ROWS[settings.device.type],
        "train file": rows.hashes[0] if len(rows.hashes) == 1 else rows.hashes,
        "text columns": settings.text_columns,
        "--pretrained_bert_model": [model_fingerprint(options.pretrained_bert_model), tokenizer_fingerprint(tokenizer)],
        "--glove_embs": glove,
        "--teacher_filter": None if teacher is None else model_fingerprint(teacher),
        **words,
        **{f"--{name}": value for name, value in identity_of(options, resolved).items()},
    }


def _judge_words(rows: _Rows, options: AugmentArguments) -> None:
    """Say how much of the texts the masked language model does not know; raises DataError if it is most of them."""
    splitter = SentenceSplitter(load_tokenizer(options.pretrained_bert_model, options.lower_case))
    pieces = unknown = 0
    for begin in range(0, len(rows.lines), _COUNTED_ROWS):
        fields = [line.split("\t") for line in rows.lines[begin : begin + _COUNTED_ROWS]]
        counts = splitter.count_unknown([row[column] for row in fields for column in rows.text_columns])
        unknown, pieces = unknown + counts[0], pieces + counts[1]
    warning = judge_unknown(unknown, pieces, text=str(rows.path), allowed=options.allow_unknown)
    print(f"warning: {warning}" if warning else f"{rows.path}: {describe_unknown(unknown, pieces)}", flush=True)


def _task(options: AugmentArguments) -> tuple[TaskSpec, Path]:
    """The task and the folder of its files."""
    spec = find_task(options.task_name, options.task_file)
    if reason := target_of(spec).not_augmented:
        raise ConfigError(f"task {spec.name} has {target_of(spec).noun}: {reason}")
    if options.teacher_filter is not None and not target_of(spec).exclusive:
        raise ConfigError(
            f"--teacher_filter: task {spec.name} is a {target_of(spec).kind}, whose teacher gives no confidence in "
            "one label of several; leave the flag out"
        )
    if options.data_dir is not None:
        return spec, Path(options.data_dir)
    return spec, find_task_folder(spec, cast(str, options.glue_dir))


def _machine_problems(options: AugmentArguments, device: torch.device) -> list[str]:
    if device.type == "cpu":
        return precision_problems("dtype", options.dtype, device)
    if options.num_workers is not None and options.num_workers > 1:
        return ["--num_workers is for CPUs; for several GPUs start the command with deepspeed --num_gpus N"]
    return []


def _description(spec: TaskSpec, rows: _Rows, settings: AugmentationSettings, num_workers: int, ranks: Ranks) -> str:
    place = f"{settings.device.type} in {str(settings.dtype).removeprefix('torch.')}"
    processes = num_workers * ranks.size
    return (
        f"augmenting {len(rows.lines):,} rows of {spec.name}: N = {settings.copies}, M = {settings.options.M}, "
        f"p = {settings.options.p}; {processes} process{'es' * (processes > 1)} on {place}"
    )


def _print_counts(counts: Counter[str], rows: _Rows, settings: AugmentationSettings) -> None:
    made, dropped = counts["variants"], counts["dropped"]
    print(f"{counts['rows']:,} rows, {made - dropped:,} variants beside them", flush=True)
    if rows.skipped_rows:
        print(f"{rows.skipped_rows:,} rows of {rows.path} lack fields and were left out")
    if settings.options.teacher_filter is None or not made:
        return
    sure = settings.options.teacher_confidence
    print(f"--teacher_filter: {dropped:,} of {made:,} variants ({dropped / made:.1%}) were below {sure}")
    for name in settings.spec.label_names:
        of_label = counts[f"variants of {name}"]
        if of_label:
            print(f"    {name}: {counts[f'dropped of {name}'] / of_label:.1%} of {of_label:,}")
    if made > dropped:
        print(f"    the teacher gives {counts['agreeing'] / (made - dropped):.1%} of the others the label of their row")


if __name__ == "__main__":
    run_command(main)
