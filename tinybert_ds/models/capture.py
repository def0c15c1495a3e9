"""Hidden states, queries, keys and values out of the encoders that people use.

Where attention goes through transformers' AttentionInterface, the registered function is SDPA that also hands each
layer's inputs to a collector, which lives for one forward pass. Layers are told apart by the order of the calls: some
architectures carry no layer index, and ALBERT calls one module many times. Elsewhere projections are read (see
`projections`). B batch rows, S sequence length, A heads, D head size, H hidden size, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tinybert_ds.errors import ModelError
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.fused_attention import fused_sdpa, padding_mask
from tinybert_ds.models.projections import BLIND_TO_PADDING, CHANGING_LENGTHS, FAMILIES, VECTORS, show_projections
from tinybert_ds.models.wide_products import wide_products
from tinybert_ds.types import Batch, EncoderOutput

ATTENTION_NAME = "tinybert_ds_sdpa"
LEAVE_ATTENTION_OUT = "distil its hidden states alone with --attention_weight 0"
"""What a refusal of anything about attention offers: the other losses need none."""
COMPARE_RELATIONS = f"compare relations between tokens with --attention_loss relations_kl, or {LEAVE_ATTENTION_OUT}"
"""What a refusal of attention scores offers."""


@dataclass
class AttentionCalls:
    """What one forward pass handed out, by the number of the attention call (0-based)."""

    wanted: frozenset[int]
    length: int  # S
    count: int = 0
    queries: dict[int, Tensor] = field(default_factory=dict)  # (B, A, S, D)
    keys: dict[int, Tensor] = field(default_factory=dict)  # (B, A, S, D)
    values: dict[int, Tensor] = field(default_factory=dict)  # (B, A, S, D)
    scalings: dict[int, float] = field(default_factory=dict)
    masks: dict[int, Tensor | None] = field(default_factory=dict)  # broadcastable to (B, A, S, S)
    additions: dict[int, str] = field(default_factory=dict)  # what is added to the scores beside the mask


_collector: ContextVar[AttentionCalls | None] = ContextVar("tinybert_ds_attention_calls", default=None)

_NO_POOLER = nn.Identity()  # not None, which not every architecture expects
_SCORE_ADDITIONS = ("position_bias", "softcap", "s_aux")


def capturing_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA in transformers' attention signature, which also shows its inputs to the active collector.

    Args:
        query, key: (B, A, S, D), after any rotary embedding, unscaled.
        attention_mask: Broadcastable to (B, A, S, S), or None.

    Returns:
        The attention output (B, S, A, D), and None for the probabilities.
    """
    calls = _collector.get()
    if calls is not None:
        # A layer that is recomputed for the backward pass comes here without a collector, and is ignored.
        number, calls.count = calls.count, calls.count + 1
        if number in calls.wanted:
            scaling = kwargs.get("scaling")
            calls.queries[number] = query
            calls.keys[number], calls.values[number] = (_for_each_query_head(each, query) for each in (key, value))
            calls.scalings[number] = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            calls.masks[number] = attention_mask
            added = [name for name in _SCORE_ADDITIONS if kwargs.get(name) is not None]
            if added:
                calls.additions[number] = ", ".join(added)
    return fused_sdpa(module, query, key, value, attention_mask, **kwargs)


def _for_each_query_head(states: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B, A / groups, S, D) as the heads of grouped queries see them, (B, A, S, D)."""
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def register_capture() -> None:
    """Make the capturing attention known to transformers; doing it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, capturing_sdpa)
    AttentionMaskInterface.register(ATTENTION_NAME, padding_mask)


class CapturingEncoder(nn.Module):
    """A Hugging Face encoder that returns what distillation reads, and keeps nothing else.

    Args:
        model: The encoder, with or without a classification head. It stays available as `.model`.
        states: Hidden states to return, in this order; 0 is the embedding output, N the last one, as the model
            returns them (`output_hidden_states`). Repeats are allowed.
        attention_layers: Attention layers (0-based) whose queries and keys to return, in this order. When it is empty
            any architecture can give logits: attention is replaced only where it is transformers' SDPA, by the same.
        relations: Of "queries", "keys" and "values" those to return, for relations between tokens. Empty: queries and
            keys, for attention scores.
        logits: Whether to run the classification head. Without it only the base model runs.
        token_types: Whether the model's tokeniser returns token types (`data.tokenizer.returns_token_types`). Where it
            does not, or where the model has none, those of a batch are left aside, as transformers does.

    Raises:
        ModelError: An architecture whose attention cannot be captured, or whose scores are not the products of its
            queries and keys, states or layers that it does not have, or logits of a model without a classification
            head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        states: Sequence[int],
        attention_layers: Sequence[int],
        logits: bool,
        token_types: bool = True,
        relations: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.states = tuple(states)
        self.attention_layers = tuple(attention_layers)
        self.logits = logits
        self.compares_scores = not relations
        self.vectors = tuple(relations) or ("queries", "keys")
        self.family = FAMILIES.get(model.config.model_type)
        """Where projections are read; None: at the AttentionInterface."""
        _check_request(self)
        register_capture()
        if not self.attention_layers and uses_plain_sdpa(model):
            model.set_attn_implementation(ATTENTION_NAME)  # the same attention, fused for every head size
        if self.attention_layers:
            _show_attention(self)
        self._takes_token_types = token_types and takes_token_types(model)

    @property
    def config(self) -> Any:
        """The model's config; DeepSpeed looks for it here."""
        return self.model.config

    def forward(self, batch: Batch) -> EncoderOutput:
        """Return the states, queries, keys and values that were asked for, in that order, and the logits (B, C) or
        None."""
        output, calls = self.run(batch)
        captured: dict[str, tuple[Tensor, ...]] = dict.fromkeys(VECTORS, ())
        for kind in self.vectors:
            captured[kind] = tuple(getattr(calls, kind)[layer] for layer in self.attention_layers)
            assert _gradients_arrive(self, captured[kind]), (
                f"{kind} without gradients: use checkpointing with use_reentrant=False"
            )
        return EncoderOutput(
            hidden_states=tuple(output.hidden_states[state] for state in self.states),
            scalings=tuple(calls.scalings[layer] for layer in self.attention_layers),
            logits=_logits_of(output) if self.logits else None,
            **captured,
        )

    def run(self, batch: Batch) -> tuple[Any, AttentionCalls]:
        """Run the model on a batch; return its own output and what its attention handed out."""
        mask = batch.attention_mask if batch.padded else None
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": mask}
        if self._takes_token_types:
            inputs["token_type_ids"] = batch.token_type_ids
        if self.model.is_activation_checkpointing and getattr(self.config, "use_cache", False):
            inputs["use_cache"] = False  # the config's value, which means nothing to an encoder, would give a warning
        if self.states:
            inputs["output_hidden_states"] = sorted(set(self.states))
        calls = AttentionCalls(frozenset(self.attention_layers), batch.input_ids.shape[1])
        token = _collector.set(calls)
        base = self.model.base_model
        try:
            head = nullcontext() if self.logits else _pooler_skipped(base)
            with head, wide_products(self.model, batch.input_ids.device):
                output = (self.model if self.logits else base)(**inputs, return_dict=True)
        finally:
            _collector.reset(token)
        return output, calls


def _logits_of(output: Any) -> Tensor:
    """The logits of a head (B, C), of one for tokens (B, S, C); where spans begin and end they are (B, S, 2)."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    logits: Tensor = output.logits
    return logits


def uses_plain_sdpa(model: PreTrainedModel) -> bool:
    """Whether the model's attention is transformers' SDPA, which ours can take the place of."""
    return model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation()


@contextmanager
def _pooler_skipped(model: nn.Module) -> Iterator[None]:
    """Let the model run without its pooler, which only a head reads; it stays the model's own."""
    pooler = getattr(model, "pooler", None)
    if not isinstance(pooler, nn.Module):
        yield
        return
    model.pooler = _NO_POOLER
    try:
        yield
    finally:
        model.pooler = pooler


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether the model distinguishes segments: RoBERTa has the argument but a single type, and 1 is out of range."""
    parameters = inspect.signature(type(model).forward).parameters
    return "token_type_ids" in parameters and has_token_types(model.config)


def has_token_types(config: Any) -> bool:
    """Whether the models of a config may have more than one type of tokens."""
    return (getattr(config, "type_vocab_size", None) or 0) > 1


def _check_request(encoder: CapturingEncoder) -> None:
    config = encoder.model.config
    depth = getattr(config, "num_hidden_layers", None)
    name = type(encoder.model).__name__
    if (reason := BLIND_TO_PADDING.get(config.model_type)) is not None:
        raise ModelError(f"{name} {reason}, so its outputs cannot be distilled; use an architecture such as BERT")
    if getattr(config, "num_landmarks", None) != getattr(config, "segment_means_seq_len", None):
        raise ModelError(
            f"{name} takes rows of {config.segment_means_seq_len} tokens alone, as its num_landmarks "
            f"({config.num_landmarks}) are fewer, and rows of other lengths fail; use an architecture such as BERT"
        )
    if (encoder.states or encoder.attention_layers) and (reason := CHANGING_LENGTHS.get(config.model_type)) is not None:
        raise ModelError(f"{name} {reason}; distil its predictions alone (--pred_distill), or use another teacher")
    if depth is None:
        raise ModelError(f"{name} has no num_hidden_layers in its config.json; use a text encoder such as BERT")
    if any(not 0 <= state <= depth for state in encoder.states):
        raise ModelError(f"hidden states {list(encoder.states)} asked of {name}; its {depth} layers have 0..{depth}")
    if any(not 0 <= layer < depth for layer in encoder.attention_layers):
        raise ModelError(
            f"attention layers {list(encoder.attention_layers)} asked of {name}; its {depth} layers are 0..{depth - 1}"
        )
    if encoder.logits and encoder.model.base_model is encoder.model:
        raise ModelError(f"logits asked of {name}, which has no classification head; load it with load_classifier")


def _show_attention(encoder: CapturingEncoder) -> None:
    """Let a model show what its attention layers compute, by the way that suits it."""
    model, family = encoder.model, encoder.family
    shown = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    if family is not None:
        if encoder.compares_scores and family.no_scores:
            raise ModelError(
                f"{shown} {family.no_scores}, so --attention_loss scores cannot be computed; {COMPARE_RELATIONS}"
            )
        show_projections(model, family, encoder.attention_layers, encoder.vectors, _collector.get)
        return
    name = type(model).__name__
    with foreign_code(f"the attention of {name} cannot be replaced by one that shows it", LEAVE_ATTENTION_OUT):
        if model._can_set_attn_implementation():
            model.set_attn_implementation(ATTENTION_NAME)
    if model.config._attn_implementation != ATTENTION_NAME:
        raise ModelError(
            f"the attention of {shown} does not go through transformers' AttentionInterface, and where else to read it "
            f"is not known, so it cannot be distilled; {LEAVE_ATTENTION_OUT}, or use an architecture such as BERT, "
            "RoBERTa, XLM-R, ELECTRA, DistilBERT, ALBERT, MobileBERT, ERNIE or NomicBERT"
        )


def _gradients_arrive(encoder: CapturingEncoder, captured: tuple[Tensor, ...]) -> bool:
    """False where a student in training hands out detached vectors, as reentrant checkpointing makes them."""
    if not (captured and encoder.training and torch.is_grad_enabled()):
        return True
    return captured[-1].requires_grad or not any(p.requires_grad for p in encoder.model.parameters())
