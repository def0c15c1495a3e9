"""A probe forward pass that tells, before any training, whether an encoder can be distilled from or into.

B batch rows, S sequence length, A heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from tinybert_ds.errors import ModelError, raise_all
from tinybert_ds.models.capture import COMPARE_RELATIONS, LEAVE_ATTENTION_OUT, AttentionCalls, CapturingEncoder
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.types import Batch, Counts


def probe_batch(model: PreTrainedModel, *, sequence_length: int) -> Batch:
    """Return two rows of `sequence_length` positions on the model's device: the last quarter of the first is padding,
    the second is full, as the longest rows of a run are."""
    padding = model.config.pad_token_id or 0
    ids = torch.arange(sequence_length) % model.config.vocab_size
    # Any token but padding, which RoBERTa recognises by its id when it counts positions.
    ids = torch.where(ids == padding, (padding + 1) % model.config.vocab_size, ids)
    lengths = torch.tensor([sequence_length - sequence_length // 4, sequence_length])
    mask = (torch.arange(sequence_length) < lengths[:, None]).long()
    rows = torch.where(mask.bool(), ids, padding).to(model.device)
    return Batch(
        input_ids=rows,
        attention_mask=mask.to(model.device),
        token_type_ids=torch.zeros_like(rows),
        labels=None,
        sample_ids=torch.arange(2, device=model.device),
        counts=Counts(rows=2.0, tokens=float(lengths.sum()), token_pairs=float(lengths.square().sum())),
    )


@contextmanager
def in_eval_mode(encoder: CapturingEncoder) -> Iterator[None]:
    """Put an encoder in eval mode inside the context."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


def check_capture(encoder: CapturingEncoder, *, sequence_length: int = 128) -> None:
    """Refuse an encoder whose scores or states are not what the losses take them for.

    Runs two rows through the model, without gradients and in eval mode. A sliding window that is wider than the
    sequence does no harm and passes.

    Args:
        sequence_length: The longest sequence of the run, in tokens.

    Raises:
        ModelError: Too few positions for the sequence; a model that cannot be run; a number of states or attention
            calls other than the depth says; where scores are compared, a mask in a mapped layer that hides more or less
            than padding, or scores with something added.
    """
    require_positions(encoder.model, sequence_length)
    batch = probe_batch(encoder.model, sequence_length=sequence_length)
    failed, advice = f"{_describe(encoder)} fails on {sequence_length} tokens", "use another architecture, such as BERT"
    with in_eval_mode(encoder), torch.no_grad(), foreign_code(failed, advice):
        output, calls = encoder.run(batch)
    states = len(output.hidden_states) if encoder.states else None
    raise_all(_problems(encoder, calls, batch.attention_mask, states), ModelError)


def captured_width(encoder: CapturingEncoder) -> int:
    """Return A·D of the queries, keys and values that an encoder hands out; where they differ, what divides all."""
    with in_eval_mode(encoder), torch.no_grad():
        output = encoder(probe_batch(encoder.model, sequence_length=8))
    return math.gcd(*(each.shape[1] * each.shape[3] for each in (*output.queries, *output.keys, *output.values)))


def require_positions(model: PreTrainedModel, sequence_length: int) -> None:
    """Raise ModelError where a model has fewer positions than a sequence has tokens."""
    limit = position_limit(model)
    if limit is not None and sequence_length > limit:
        raise ModelError(
            f"sequences of {sequence_length} tokens are longer than the {limit} positions of {_named(model)}; "
            f"lower --max_seq_length to at most {limit}"
        )


def position_limit(model: PreTrainedModel) -> int | None:
    """Return the longest sequence that the config allows, or None where it states no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding_idx = getattr(table, "padding_idx", None)
    if limit is None or padding_idx is None:
        return limit
    return limit - padding_idx - 1  # RoBERTa counts positions from padding_idx + 1


def positions_of(config: Any) -> int | None:
    """Return the longest sequence of the models of a config, or None where it states no limit; no weights are made."""
    with torch.device("meta"):
        return position_limit(AutoModel.from_config(config))


def _problems(
    encoder: CapturingEncoder, calls: AttentionCalls, attention_mask: Tensor, states: int | None
) -> list[str]:
    depth = encoder.model.config.num_hidden_layers
    problems = []
    if states is not None and states != depth + 1:
        problems.append(
            f"{_describe(encoder)} returns {states} hidden states for its {depth} layers, not {depth + 1}; "
            "its states cannot be mapped to layers"
        )
    if not encoder.attention_layers or encoder.family is not None:
        return problems
    if calls.count != depth:
        problems.append(
            f"{_describe(encoder)} made {calls.count} attention calls through transformers' AttentionInterface for its "
            f"{depth} layers, so they cannot be told apart by layer; {LEAVE_ATTENTION_OUT}, or use an architecture "
            "with one per layer, such as BERT"
        )
        return problems
    if not encoder.compares_scores:
        return problems  # whatever a query is allowed to see, its relation to any token is defined
    for layer in dict.fromkeys(encoder.attention_layers):
        problems += _layer_problems(encoder, calls, attention_mask, layer)
    return problems


def _layer_problems(encoder: CapturingEncoder, calls: AttentionCalls, attention_mask: Tensor, layer: int) -> list[str]:
    if layer in calls.additions:
        return [
            f"attention layer {layer} of {_describe(encoder)} adds {calls.additions[layer]} to its scores, which "
            f"queries and keys do not show; {COMPARE_RELATIONS}, or use an architecture with plain scores, such as BERT"
        ]
    if not _masks_only_padding(calls.masks[layer], attention_mask):
        return [
            f"attention layer {layer} of {_describe(encoder)} hides other keys than padding (a sliding window or a "
            f"causal mask) at {attention_mask.shape[1]} tokens; choose a --layer_map that names layers with full "
            f"attention, {COMPARE_RELATIONS}, or use another architecture"
        ]
    return []


def _masks_only_padding(mask: Tensor | None, attention_mask: Tensor) -> bool:
    """Whether each real query sees exactly the real keys; what padded queries see does not matter."""
    if mask is None:
        return bool(attention_mask.all())
    length = attention_mask.shape[1]
    if mask.dtype != torch.bool:
        visible = mask == 0
        if bool((~visible & (mask > -1e4)).any()):  # neither open nor shut: a bias
            return False
        mask = visible
    seen = mask.expand(*mask.shape[:-2], length, length)
    real = attention_mask.bool()[:, None, None, :]
    return bool(((seen == real) | ~real.transpose(-1, -2)).all())


def _describe(encoder: CapturingEncoder) -> str:
    return _named(encoder.model)


def _named(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} (model_type {model.config.model_type!r})"
