"""Attention in the forms that ONNX Runtime computes fastest on CPUs.

Products, a sum with the mask and softmax, and no more; or the one operator that ONNX has for it, which reads and
writes the states of all heads side by side and so needs no transposed copies of them.

B batch rows, S sequence length, A heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, eager_mask

from tinybert_ds.models.capture import uses_plain_sdpa

MASKED = -60.0
"""What is added to the scores of padding: e^-60 is no part of a sum in float32, and no denormal number either, with
which ONNX Runtime's softmax takes seven times as long as with others (transformers adds the lowest float)."""

OPERATOR_FROM = 24
"""The operator set from which on attention is one operator. ONNX has it in 23 already, but what torch's exporter makes
of rotary embeddings for that one, ONNX Runtime refuses (onnxscript 0.7.2)."""

_NAME = "tinybert_ds_served"
_MORE = ("softcap", "s_aux", "position_bias")
"""Of some architectures: what else their scores are made of."""


@contextmanager
def served_attention(model: PreTrainedModel, *, opset: int) -> Iterator[None]:
    """Let a model that is traced for an operator set have this attention, where its own is transformers' SDPA."""
    if not uses_plain_sdpa(model):
        yield
        return
    AttentionInterface.register(_NAME, partial(_attention, opset=opset))
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    opset: int,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return (B, S, A, D) for queries (B, A, S, D), keys and values with as many heads or a part of them."""
    if any(more.get(name) is not None for name in _MORE):
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
        return output, None
    compute = _operator if opset >= OPERATOR_FROM else _products
    return compute(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def _products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous()


def _operator(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    heads, kv_heads = query.shape[1], key.shape[1]
    query, key, value = (states.transpose(1, 2).flatten(2) for states in (query, key, value))
    output, *_ = torch.onnx.ops.attention(
        query, key, value, mask, q_num_heads=heads, kv_num_heads=kv_heads, scale=scaling
    )
    return output.unflatten(2, (heads, -1))


def _mask(**words: Any) -> Tensor | None:
    """The mask (B, 1, S, S) that is added to the scores; see `masking_utils.eager_mask`."""
    padding = words.get("attention_mask")
    if padding is not None and words["mask_function"] is bidirectional_mask_function:
        return torch.where(padding[:, None, None], 0.0, MASKED).expand(-1, -1, words["q_length"], -1)
    mask = eager_mask(**words)
    return None if mask is None else torch.clamp(mask, min=MASKED)
