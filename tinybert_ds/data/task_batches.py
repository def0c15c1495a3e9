"""Tokenised task rows and the batches made of them.

N rows, T tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.batching import Padding, RowLayout, Rows, plan_window, step_batches
from tinybert_ds.data.order import Ints, make_key, span_indices
from tinybert_ds.data.row_pairs import count_pairs, plan_pairs
from tinybert_ds.data.task_files import Examples, Labels
from tinybert_ds.data.task_spec import GROUPS
from tinybert_ds.data.tokenizer import returns_token_types
from tinybert_ds.errors import ConfigError, ModelError
from tinybert_ds.types import Batch


@dataclass(frozen=True)
class EncodedExamples:
    """The rows of one split as token ids, special tokens included: row i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: NDArray[np.integer]  # (T,)
    offsets: NDArray[np.int64]  # (N + 1,)
    segment_a_lengths: NDArray[np.int32]  # (N,) leading tokens of token type 0; the rest of a row has type 1
    labels: Labels | None  # (N, ...) as the target has them; where tokens are answered (T,), `IGNORED` elsewhere
    skipped_rows: int = 0  # rows of the file that lack fields and were left out
    columns: Mapping[str, NDArray] = field(default_factory=dict)
    """What else is known, by name: (N, ...) of each row; `PLACES`, and what a teacher said of tokens, are (P, ...), of
    each token that is answered."""
    units: NDArray[np.bool_] | None = None  # (T,) the tokens that are answered; None: rows are

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def has_second_segments(self) -> bool:
        """Whether any token is of type 1."""
        return bool((self.segment_a_lengths < self.lengths).any())

    @cached_property
    def unit_offsets(self) -> NDArray[np.int64] | None:
        """(N + 1,) where the answers of each row's tokens begin among those of all; None: each row has one."""
        if self.units is None:
            return None
        return np.concatenate([[0], np.cumsum(np.add.reduceat(self.units, self.offsets[:-1], dtype=np.int64))])

    @property
    def num_units(self) -> int:
        """How many answers there are."""
        return len(self) if self.unit_offsets is None else int(self.unit_offsets[-1])

    @property
    def gold(self) -> Labels | None:
        """The labels of all that is answered, in the order of the rows."""
        return self.labels if self.labels is None or self.units is None else self.labels[self.units]

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """The number of the group that each of all that is answered belongs to; None: nothing says so."""
        groups = self.columns.get(GROUPS)
        if groups is None or self.unit_offsets is None:
            return groups
        return np.repeat(groups, np.diff(self.unit_offsets))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per row, (N,)."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: the same rows, labels, tokeniser and length give the same one."""
        digest = xxhash.xxh3_128()
        for part in (self.tokens, self.offsets, self.segment_a_lengths, self.labels):
            digest.update(b"none" if part is None else f"{part.dtype}{part.shape}".encode())
            digest.update(b"" if part is None else np.ascontiguousarray(part).data)
        more = dict(self.columns) if self.units is None else {**self.columns, "units": self.units}
        for name, column in sorted(more.items()):
            digest.update(f"{name}{column.dtype}{column.shape}".encode())
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


def encode(examples: Examples, tokenizer: PreTrainedTokenizerFast, max_seq_length: int) -> EncodedExamples:
    """Tokenise all rows of a split, with the tokeniser's own special tokens, cut to `max_seq_length`.

    Pairs are cut as Hugging Face does by default: token by token from the end of the longer text.

    Raises:
        ConfigError: `max_seq_length` leaves no room beside the special tokens.
        ModelError: The tokeniser's token types are not 0 for one text and 1 for the other.
    """
    block = row_encoder(tokenizer, max_seq_length, pair=len(examples.texts) == 2)(examples)
    offsets = np.concatenate([[0], np.cumsum(block.lengths)])
    return EncodedExamples(
        block.tokens, offsets, block.segment_a_lengths, examples.labels, examples.skipped_rows, examples.columns
    )


class EncodedBlock(NamedTuple):
    """Consecutive rows as token ids."""

    tokens: NDArray[np.int32]  # (Σ lengths,)
    lengths: NDArray[np.int64]  # (n,)
    segment_a_lengths: NDArray[np.int32]  # (n,)
    units: NDArray[np.bool_] | None = None  # these three where rows are not those of the file, see `EncodedExamples`
    labels: Labels | None = None
    columns: Mapping[str, NDArray] | None = None


def row_encoder(
    tokenizer: PreTrainedTokenizerFast, max_seq_length: int, *, pair: bool
) -> Callable[[Examples], EncodedBlock]:
    """Return what tokenises rows in all threads of the tokeniser; see `encode`."""
    # A copy, because truncation is a setting of the tokeniser itself and the caller's must stay as it is.
    engine = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    special = engine.num_special_tokens_to_add(pair)
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
    filler = next(int(token) for token in known if token is not None)
    if max_seq_length < special + 1 + pair:
        raise ConfigError(
            f"max_seq_length is {max_seq_length}, but {special} special tokens and a token of each text need "
            f"{special + 1 + pair}; the usual lengths are 64 for one text and 128 for two"
        )
    engine.no_padding()
    if returns_token_types(tokenizer):
        require_two_types(engine, str(tokenizer.name_or_path))
    engine.enable_truncation(max_length=max_seq_length, strategy="longest_first", stride=0)

    def encode_block(examples: Examples) -> EncodedBlock:
        texts = examples.texts
        encodings = engine.encode_batch_fast(list(zip(*texts, strict=True)) if pair else texts[0])
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        of_type_1 = np.fromiter((sum(encoding.type_ids) for encoding in encodings), np.int64, count=len(encodings))
        tokens = np.fromiter(ids, dtype=np.int32, count=int(lengths.sum()))
        block = EncodedBlock(tokens, lengths, (lengths - of_type_1).astype(np.int32))
        return block if lengths.all() else _without_empty_rows(block, filler)

    return encode_block


def _without_empty_rows(block: EncodedBlock, filler: int) -> EncodedBlock:
    """Return rows each of which has a token: those of none, of a tokeniser that adds none, are one filler."""
    empty = block.lengths == 0
    begins = np.cumsum(block.lengths) - block.lengths
    segments = np.where(empty, 1, block.segment_a_lengths).astype(np.int32)
    return EncodedBlock(np.insert(block.tokens, begins[empty], filler), np.maximum(block.lengths, 1), segments)


def require_two_types(engine: Tokenizer, name: str) -> None:
    """Refuse token types that a row cannot be described by, where a model would be given them."""
    for inputs in (("a",), ("a", "a")):
        types = engine.encode(*inputs).type_ids
        if sorted(types) != types or not set(types) <= {0, 1}:
            raise ModelError(
                f"the tokeniser {name!r} gives the token types {types}; rows are made of type 0 and, behind it, type "
                '1. Leave "token_type_ids" out of model_input_names in its tokenizer_config.json if its model was '
                "trained without them, or give another tokeniser"
            )


def take_rows(encoded: EncodedExamples, rows: Ints) -> Rows:
    """Return the rows of the given numbers, in that order, as `batching.collate` takes them."""
    lengths = encoded.offsets[rows + 1] - encoded.offsets[rows]
    places = span_indices(encoded.offsets[rows], lengths)
    return Rows(
        tokens=encoded.tokens[places],
        lengths=lengths,
        first_lengths=encoded.segment_a_lengths[rows].astype(np.int64),
        sample_ids=rows,
        labels=None if encoded.labels is None else encoded.labels[rows if encoded.units is None else places],
        units=None if encoded.units is None else encoded.units[places],
        groups=None if GROUPS not in encoded.columns else encoded.columns[GROUPS][rows],
    )


class TaskSource:
    """The batches of a task's rows: a `batching.BatchSource`. `Batch.sample_ids` are row numbers of the file.

    Args:
        max_seq_length: what "reference" padding pads to, and what the rows were cut to.
        seed: names the order, together with the epoch.
        padding: "valid" or "reference", see `batching.RowLayout`.
        shuffle: False gives every row once in order of length, the same in every epoch: for evaluation.
        numbers: Those of the rows that are read; None: all.
        in_pairs: Whether rows of one group come in pairs, see `row_pairs`.
    """

    def __init__(
        self,
        encoded: EncodedExamples,
        *,
        global_batch_size: int,
        max_seq_length: int,
        seed: int = 0,
        padding: Padding = "valid",
        pad_id: int,
        shuffle: bool = True,
        numbers: Ints | None = None,
        in_pairs: bool = False,
    ) -> None:
        assert global_batch_size > 0, global_batch_size
        assert encoded.lengths.max() <= max_seq_length, (encoded.lengths.max(), max_seq_length)
        self._encoded = encoded
        self._lengths = encoded.lengths
        self._units = None if encoded.unit_offsets is None else np.diff(encoded.unit_offsets)
        self._numbers = np.arange(len(encoded)) if numbers is None else numbers
        self._global_batch_size = global_batch_size
        self._pair_groups = encoded.columns[GROUPS] if in_pairs else None
        self._layout = RowLayout(padding, max_seq_length, pad_id)
        self._seed = seed
        self._shuffle = shuffle
        # Two epochs: a prefetching reader may look into the next one while this one ends.
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows, without the order that seed and batch size give them."""
        return self._encoded.fingerprint

    def samples_in_epoch(self, epoch: int) -> int:
        """Rows; the same in every epoch."""
        return len(self._numbers)

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps; the last one may have fewer rows than the others."""
        return -(-len(self._numbers) // self._global_batch_size)

    def samples_in_step(self, epoch: int, position: int) -> int:
        """Rows of the global batch at step `position`."""
        assert 0 <= position < self.steps_in_epoch(epoch), position
        return min(self._global_batch_size, len(self._numbers) - position * self._global_batch_size)

    def micro_batches(self, epoch: int, position: int, *, rank: int, world_size: int, accumulation: int) -> list[Batch]:
        """Return the micro-batches that `rank` takes in step `position` of `epoch`, see `batching.BatchSource`."""
        steps = self._plan(epoch if self._shuffle else 0)
        return step_batches(
            steps[position],
            self._lengths,
            partial(take_rows, self._encoded),
            self._layout,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
            units=self._units,
            pairs=None if self._pair_groups is None else count_pairs(self._pair_groups[steps[position]]),
        )

    def _plan_epoch(self, epoch: int) -> list[Ints]:
        key = make_key("task", self._seed, epoch) if self._shuffle else None
        if self._pair_groups is not None and key is not None:
            lengths, groups = self._lengths[self._numbers], self._pair_groups[self._numbers]
            return [self._numbers[step] for step in plan_pairs(groups, lengths, self._global_batch_size, key)]
        steps = plan_window(self._lengths[self._numbers], self._global_batch_size, key)
        return [self._numbers[step] for step in steps]
