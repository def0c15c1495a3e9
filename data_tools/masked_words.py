"""What a masked language model would put in the place of a word.

n maskings, S sequence length, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from data_tools.sentence_words import Sentence
from tinybert_ds.data.tokenizer import returns_token_types, special_ids
from tinybert_ds.errors import ModelError
from tinybert_ds.models.packed_linear import pack_linear_layers
from tinybert_ds.models.pretrained import load_masked_lm

MAX_LENGTH = 512
"""Longest input of the published rule; a model with fewer positions takes fewer."""


class Masking(NamedTuple):
    """A sentence and the piece of it that is masked."""

    sentence: Sentence
    piece: int


class MaskedWordModel:
    """A BERT that says which pieces fit best in the place of a masked one.

    The input is `[CLS] masked sentence [SEP] sentence [SEP]`, cut at `MAX_LENGTH`; token types are 0 through the first
    [SEP] and 1 behind it, where the tokeniser gives its model any. Only the masked place is of interest: the last layer
    and the vocabulary head look at no other.

    Args:
        dtype: of the encoder. The head stays in float32: half-precision scores of a vocabulary are full of ties.
        batch_tokens: most tokens of one forward, padding included, unless one input has more.

    Raises:
        ModelError: no BERT with a masked-LM head, or a tokeniser without the tokens it needs or with too many.
    """

    def __init__(
        self,
        directory: str | Path,
        tokenizer: PreTrainedTokenizerFast,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_tokens: int,
    ) -> None:
        model = load_masked_lm(directory)
        if not isinstance(model, BertForMaskedLM):
            raise ModelError(f"{directory} is a {type(model).__name__}; data augmentation needs a BertForMaskedLM")
        ids = special_ids(tokenizer)
        if ids.mask is None:
            raise ModelError(f"the tokeniser of {directory} has no mask token; give a masked language model")
        vocabulary = tokenizer.get_vocab()
        if ids.vocab_size > model.config.vocab_size:
            raise ModelError(
                f"the tokeniser of {directory} has ids up to {ids.vocab_size - 1}, its model knows "
                f"{model.config.vocab_size} tokens; give the tokeniser and the model of one directory"
            )
        self._cls, self._sep, self._pad, self._mask = ids.cls, ids.sep, ids.pad, ids.mask
        self._pieces = [""] * ids.vocab_size
        for piece, number in vocabulary.items():
            self._pieces[number] = piece
        self._limit = min(MAX_LENGTH, model.config.max_position_embeddings)
        self._second_type = min(1, model.config.type_vocab_size - 1) if returns_token_types(tokenizer) else 0
        self._batch_tokens = batch_tokens
        self._device = device
        self._head = cast(Any, model.cls).to(device)
        if dtype is not torch.float32:
            # Its weights are those of the embeddings, which get another dtype.
            self._head.predictions.decoder = copy.deepcopy(self._head.predictions.decoder)
        self._base = cast(Any, model.bert).to(device=device, dtype=dtype)
        pack_linear_layers(self._base, device)
        self._last_layer = self._base.encoder.layer[-1]
        self._base.encoder.layer = self._base.encoder.layer[:-1]

    @torch.inference_mode()
    def candidates(self, maskings: Sequence[Masking], count: int) -> list[list[str]]:
        """Return the best pieces for each masked place, the best first.

        In half precision a place's scores depend on what else is in its batch: other shapes and padding take other
        paths through the libraries' products, sums are rounded elsewhere, and near ties fall the other way. What is
        given together is batched by a fixed rule, so the same maskings give the same pieces.

        Args:
            count: how many of the best to take; those of them that begin with ## are then dropped. A place at the cut
                or behind it has none.
        """
        found: list[list[str]] = [[] for _ in maskings]
        inside = [number for number, masking in enumerate(maskings) if masking.piece + 1 < self._limit]
        lengths = np.array([self._length(maskings[number].sentence) for number in inside], dtype=np.int64)
        for batch in _batches(lengths, self._batch_tokens):
            numbers = [inside[place] for place in batch]
            best = self._best([maskings[number] for number in numbers], count)
            for number, pieces in zip(numbers, best.tolist(), strict=True):
                names = (self._pieces[piece] for piece in pieces)
                found[number] = [name for name in names if not name.startswith("##")]
        return found

    def _length(self, sentence: Sentence) -> int:
        return min(2 * len(sentence.piece_ids) + 3, self._limit)

    def _best(self, maskings: Sequence[Masking], count: int) -> Tensor:
        """Return the ids of the best pieces, (n, count) int64, in descending order."""
        length = max(self._length(masking.sentence) for masking in maskings)
        ids = np.full((len(maskings), length), self._pad, dtype=np.int64)
        types = np.zeros_like(ids)
        mask = np.zeros(ids.shape, dtype=bool)
        for row, masking in enumerate(maskings):
            pieces = masking.sentence.piece_ids
            tokens = [self._cls, *pieces, self._sep, *pieces, self._sep][:length]
            tokens[masking.piece + 1] = self._mask
            ids[row, : len(tokens)] = tokens
            types[row, len(pieces) + 2 : len(tokens)] = self._second_type
            mask[row, : len(tokens)] = True
        places = [masking.piece + 1 for masking in maskings]
        on_device = partial(torch.tensor, device=self._device)
        padding = None if mask.all() else on_device(mask)
        scores = self._scores(on_device(ids), on_device(types), padding, on_device(places))
        return scores.topk(min(count, scores.shape[1]), dim=1).indices

    def _scores(self, ids: Tensor, types: Tensor, mask: Tensor | None, places: Tensor) -> Tensor:
        """Return the scores (n, V) float32 of all pieces of the tokeniser at one place (n,) of each row (n, S)."""
        states = self._base(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state
        state = _layer_at(self._last_layer, states, places, mask)
        return self._head(state.float())[:, 0, : len(self._pieces)]


def _batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of rows, the longest first, in batches of at most so many tokens after padding."""
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        end = begin + max(1, batch_tokens // int(lengths[order[begin]]))
        yield order[begin:end]
        begin = end


def _layer_at(layer: Any, states: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
    """Return the output (n, 1, H) of a BERT layer at one place of each row; it attends to the whole row."""
    own = states[torch.arange(len(states), device=states.device), places][:, None]
    attention = layer.attention.self

    def heads(linear: nn.Module, inputs: Tensor) -> Tensor:
        return linear(inputs).view(*inputs.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        heads(attention.query, own),
        heads(attention.key, states),
        heads(attention.value, states),
        attn_mask=None if mask is None else mask[:, None, None],
        scale=attention.scaling,
    )
    return layer.feed_forward_chunk(layer.attention.output(context.transpose(1, 2).flatten(2), own))
