"""From rows to micro-batches: length bins, shares of ranks, padding and the counts that the losses divide by.

Shared by the corpus and by task data. Everything is a pure function, the same on all ranks, without communication.
n rows, B micro-batch rows, S padded length.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints, make_key, permutation
from tinybert_ds.data.samples import PADDING_MULTIPLE
from tinybert_ds.types import Batch, Counts

Padding = Literal["valid", "reference"]
INFINITE_COUNTS = Counts(*(float("inf") for _ in Counts._fields))
IGNORED = -100
"""The label of a token that is not answered."""
BEGINS, ENDS = 1, 2
"""What the label of a token of a context is made of: whether the answer begins there, and whether it ends there."""

Item = TypeVar("Item")


class BatchSource(Protocol):
    """What the training loop reads: optimizer steps, each a pure function of (seed, epoch, position)."""

    @property
    def fingerprint(self) -> str:
        """Names the data and every option that changes the rows, but neither seed nor batch size."""

    def samples_in_epoch(self, epoch: int) -> int: ...

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps; all are of `global_batch_size` rows but the last, which may be shorter."""

    def samples_in_step(self, epoch: int, position: int) -> int:
        """Rows of the global batch at optimizer step `position` of `epoch`."""

    def micro_batches(self, epoch: int, position: int, *, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """The `accumulation` micro-batches that `rank` takes in optimizer step `position` (from 0) of `epoch`.

        The rows of a step do not depend on rank, world size or accumulation. Starting at any position costs the same.
        """


class Rows(NamedTuple):
    """Some rows as flat tokens, special tokens included."""

    tokens: NDArray[np.integer]  # (Σ lengths,)
    lengths: Ints  # (n,)
    first_lengths: Ints  # (n,) leading tokens of token type 0; the others are of type 1
    sample_ids: Ints  # (n,)
    labels: NDArray | None = None  # (n, ...) integer or floating; with units (Σ lengths,)
    units: NDArray[np.bool_] | None = None  # (Σ lengths,) which tokens are answered; None: rows are
    groups: Ints | None = None  # (n,) which rows belong together


class RowLayout(NamedTuple):
    """How rows become tensors."""

    padding: Padding  # "valid": to the step's longest row, rounded up to 8; "reference": to max_seq_length
    max_seq_length: int
    pad_id: int


def plan_window(lengths: Ints, global_batch_size: int, key: int | None) -> list[Ints]:
    """Rows of each optimizer step of a window, every row exactly once.

    The rows of a step are drawn at random from one length bin; what is left of all bins goes, sorted by length, into
    mixed steps. Steps come in random order, and a short one, if any, last.

    Args:
        lengths: (n,) tokens of each row, special tokens included.
        key: names the order; None gives plain order of length instead, for evaluation.

    Returns:
        ceil(n / global_batch_size) arrays of row numbers.
    """
    n = len(lengths)
    if key is None:
        in_order = np.argsort(lengths, kind="stable").astype(np.int64)
        return _cut(in_order, global_batch_size)
    # Rows are shuffled before they are binned, so that a step of one length is still a random draw of it; the stable
    # sort keeps that order inside a bin. What fills no whole step goes into mixed steps, neighbours in length together:
    # every row is read in every epoch, at the price of some padding in fewer steps than there are bins.
    shuffled = permutation(make_key(key, "rows"), n)
    bins = (lengths[shuffled] - 1) // PADDING_MULTIPLE
    by_bin = np.argsort(bins, kind="stable")
    shuffled, bins = shuffled[by_bin], bins[by_bin]
    _, begins, sizes = np.unique(bins, return_index=True, return_counts=True)
    place_in_bin = np.arange(n) - np.repeat(begins, sizes)
    in_full_step = place_in_bin < np.repeat(sizes // global_batch_size * global_batch_size, sizes)
    rest = shuffled[~in_full_step]
    rest = rest[np.argsort(lengths[rest], kind="stable")]
    steps = _cut(np.concatenate([shuffled[in_full_step], rest]), global_batch_size)
    full = n // global_batch_size
    return [steps[step] for step in permutation(make_key(key, "steps"), full)] + steps[full:]


def split_rows(n_rows: int, parts: int, together: int = 1) -> list[slice]:
    """Cut `n_rows` into `parts` consecutive slices, as even as can be; some are empty when there are too few rows.

    Args:
        together: So many neighbours stay in one slice.
    """
    edges = [n_rows // together * part // parts * together for part in range(parts)] + [n_rows]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def rank_rows(step_rows: Ints, *, rank: int, world_size: int, accumulation: int, together: int = 1) -> list[Ints]:
    """The rows of a step (r,) that one rank takes in each of its micro-steps; some are empty in a short step.

    Part `micro_step · world_size + rank` of the step's rows belongs to that micro-step of that rank.
    """
    slices = split_rows(len(step_rows), world_size * accumulation, together)
    return [step_rows[part] for part in slices[rank::world_size]]


def padded_length(lengths: Ints, layout: RowLayout) -> int:
    """S for all micro-batches of a step, of the lengths of all its rows."""
    if layout.padding == "reference":
        return layout.max_seq_length
    longest = int(lengths.max())
    return max(longest, min(-(-longest // PADDING_MULTIPLE) * PADDING_MULTIPLE, layout.max_seq_length))


def step_counts(lengths: Ints, padded: int, padding: Padding, parts: int, units: int = 0) -> Counts:
    """What each of the `parts` micro-batches of a step divides its losses by (see `types.Counts`).

    Args:
        units: Tokens of the step that are answered.
    """
    lengths = np.full_like(lengths, padded) if padding == "reference" else lengths
    return Counts(
        rows=len(lengths) / parts,
        tokens=int(lengths.sum()) / parts,
        token_pairs=int((lengths**2).sum()) / parts,
        units=units / parts,
    )


def step_batches(
    step_rows: Ints,
    lengths: Ints,
    fetch: Callable[[Ints], Rows],
    layout: RowLayout,
    *,
    rank: int,
    world_size: int,
    accumulation: int,
    units: Ints | None = None,
    pairs: int | None = None,
) -> list[Batch]:
    """The micro-batches that one rank takes in one optimizer step.

    Without rows in a micro-step (see `rank_rows`) it takes one filler row, a copy of the step's first, with sample id
    -1 and infinite counts: every rank must run as many forwards and backwards as the others, and this one adds exactly
    nothing.

    Args:
        step_rows: (r,) row numbers of the whole step, from `plan_window`.
        lengths: (n,) lengths of all rows that the row numbers point into.
        fetch: reads rows; called once per micro-batch, only for rows of this rank.
        units: (n,) tokens that are answered in all rows; None: rows are.
        pairs: Pairs of rows of one group in this step, which stay together; None: rows are not compared.
    """
    step_lengths = lengths[step_rows]
    padded = padded_length(step_lengths, layout)
    answered = pairs or 0 if units is None else int(units[step_rows].sum())
    together = 1 if pairs is None else 2
    counts = step_counts(step_lengths, padded, layout.padding, world_size * accumulation, answered)
    batches = []
    for mine in rank_rows(step_rows, rank=rank, world_size=world_size, accumulation=accumulation, together=together):
        if len(mine):
            batches.append(collate(fetch(mine), padded, layout, counts))
        else:
            filler = fetch(step_rows[:1])
            nothing = None if filler.units is None else np.zeros_like(filler.units)
            filler = filler._replace(sample_ids=np.full_like(filler.sample_ids, -1), units=nothing)
            batches.append(collate(filler, padded, layout, INFINITE_COUNTS))
    return batches


def collate(rows: Rows, padded: int, layout: RowLayout, counts: Counts) -> Batch:
    """Rows as padded tensors: ids, mask and types (B, S) int64, labels (B, ...) int64 or float32, units (B, S) bool.

    Types are always those of the rows; a model without segments leaves them aside.
    """
    column = np.arange(padded)
    mask = column < rows.lengths[:, None]
    input_ids = np.full(mask.shape, layout.pad_id, dtype=np.int64)
    input_ids[mask] = rows.tokens
    types = mask & (column >= rows.first_lengths[:, None])
    labels = units = None
    if rows.labels is not None:
        wanted = np.float32 if np.issubdtype(rows.labels.dtype, np.floating) else np.int64
        values = rows.labels if rows.units is None else _padded(rows.labels, mask, IGNORED)
        labels = torch.from_numpy(values.astype(wanted))
    if rows.units is not None:
        units = torch.from_numpy(_padded(rows.units, mask, False))
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
        token_type_ids=torch.from_numpy(types.astype(np.int64)),
        labels=labels,
        sample_ids=torch.from_numpy(rows.sample_ids.astype(np.int64)),
        counts=counts,
        padded=bool((rows.lengths < padded).any()),
        units=units,
        groups=None if rows.groups is None else torch.from_numpy(rows.groups.astype(np.int64)),
    )


def _padded(values: NDArray, mask: NDArray[np.bool_], fill: int | bool) -> NDArray:
    """(Σ lengths,) -> (B, S)."""
    padded = np.full(mask.shape, fill, dtype=values.dtype)
    padded[mask] = values
    return padded


def token_counts(batch: Batch) -> tuple[int, int]:
    """(real tokens, computed tokens) of a micro-batch; the padding share is 1 - real / computed.

    A filler row counts as computed, not as real.
    """
    own = batch.sample_ids >= 0
    return int(batch.attention_mask[own].sum()), batch.attention_mask.numel()


def prefetch(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Draw items in a background thread, at most `depth` ahead.

    An exception of the iterator is raised here, at its place in the sequence. Closing the generator, or leaving it
    behind, stops the thread after the item it is at.
    """
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(entry: tuple[Item] | BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for item in items:
                put((item,))
                if closed.is_set():
                    return
        except BaseException as error:  # whatever it is, the consumer's thread is the one to know
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=draw, name="prefetch", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        closed.set()
        thread.join()


def _cut(rows: Ints, size: int) -> list[Ints]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]
