"""Post-LayerNorm encoders seen alike: one table of names, and a forward pass that shows everything inside a layer.

T real tokens of a block, B rows, S sequence length, A heads, D head size, H hidden size, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import takes_token_types
from tinybert_ds.types import Batch


class _HeadNames(NamedTuple):
    """Where an architecture keeps its classification head, below the classifier; `activation` is a name or a call."""

    dense: str
    activation: str | Callable[..., Tensor]
    classifier: str


_BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "activation": "intermediate.intermediate_act_fn",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
_DISTILBERT = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "intermediate": "ffn.lin1",
    "activation": "ffn.activation",
    "output": "ffn.lin2",
    "output_norm": "output_layer_norm",
}
_POOLER_HEAD = _HeadNames("{base}.pooler.dense", "{base}.pooler.activation", "classifier")
_ROBERTA_HEAD = _HeadNames("classifier.dense", torch.tanh, "classifier.out_proj")
_ELECTRA_HEAD = _HeadNames("classifier.dense", "classifier.activation", "classifier.out_proj")

_TOKEN_HEADS = {"ForTokenClassification": "classifier", "ForQuestionAnswering": "qa_outputs"}
"""How models that answer each token are called, and where their head is."""

ARCHITECTURES: dict[str, tuple[str, dict[str, str], _HeadNames]] = {
    "bert": ("encoder.layer", _BERT, _POOLER_HEAD),
    "ernie": ("encoder.layer", _BERT, _POOLER_HEAD),
    "roberta": ("encoder.layer", _BERT, _ROBERTA_HEAD),
    "xlm-roberta": ("encoder.layer", _BERT, _ROBERTA_HEAD),
    "camembert": ("encoder.layer", _BERT, _ROBERTA_HEAD),
    "electra": ("encoder.layer", _BERT, _ELECTRA_HEAD),
    "distilbert": ("transformer.layer", _DISTILBERT, _HeadNames("pre_classifier", F.relu, "classifier")),
}
"""model_type -> where the layers are, below the base model; in each of them what `EncoderLayer` holds; the head."""


@dataclass(frozen=True)
class EncoderLayer:
    """The modules of one layer; writing to their weights changes the model."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear
    activation: Callable[[Tensor], Tensor]
    output: nn.Linear
    output_norm: nn.LayerNorm
    num_heads: int

    @property
    def head_dim(self) -> int:
        return self.query.out_features // self.num_heads


class HeadParts(NamedTuple):
    """A head: state of the first token -> dense -> activation -> classifier -> logits; or each state -> classifier."""

    dense: nn.Linear | None  # None: each token is answered, by the classifier alone
    activation: Callable[[Tensor], Tensor]
    classifier: nn.Linear | None  # None: an encoder with a pooler alone

    def features(self, states: Tensor) -> Tensor:
        """Return what the classifier reads, from the states (n, H) of what is answered."""
        return states if self.dense is None else self.activation(self.dense(states))


class AttentionStates(NamedTuple):
    """What the attention half of a layer computes, of the real tokens alone."""

    query: Tensor  # (T, A·D)
    key: Tensor  # (T, A·D)
    value: Tensor  # (T, A·D)
    context: Tensor  # (T, A·D)
    total: Tensor  # (T, H) what goes into the LayerNorm
    state: Tensor  # (T, H) what comes out of it


class ForwardStates(NamedTuple):
    """What the feed-forward half of a layer computes, of the real tokens alone."""

    activated: Tensor  # (T, I)
    total: Tensor  # (T, H) what goes into the LayerNorm
    state: Tensor  # (T, H) what comes out of it


def encoder_layers(model: PreTrainedModel) -> list[EncoderLayer]:
    """Return the layers of an encoder.

    Raises:
        ModelError: An architecture that is not in the table.
    """
    place, names, _ = ARCHITECTURES[require_known(model.config)]
    layers: Any = model.base_model.get_submodule(place)
    heads = model.config.num_attention_heads
    return [
        EncoderLayer(**{name: _attribute(layer, path) for name, path in names.items()}, num_heads=heads)
        for layer in layers
    ]


def head_parts(model: PreTrainedModel) -> HeadParts | None:
    """Return the head of a classifier of texts or tokens, the pooler of a bare encoder that has one, or None."""
    *_, names = ARCHITECTURES[require_known(model.config)]
    for kind, name in _TOKEN_HEADS.items():
        if type(model).__name__.endswith(kind):
            return HeadParts(None, nn.Identity(), getattr(model, name))
    bare = model.base_model is model
    if bare and (names is not _POOLER_HEAD or getattr(model, "pooler", None) is None):
        return None
    prefix = "" if bare else f"{model.base_model_prefix}."
    dense, activation = (
        path.replace("{base}.", prefix) if isinstance(path, str) else path for path in (names.dense, names.activation)
    )
    called = _attribute(model, activation) if isinstance(activation, str) else activation
    classifier: Any = None if bare else model.get_submodule(names.classifier)
    linear: Any = model.get_submodule(str(dense))
    return HeadParts(linear, called, classifier)


def require_known(config: Any) -> str:
    """Return the model_type of a config whose layers the table describes.

    Raises:
        ModelError: It describes them not, or not as this config has them.
    """
    model_type = config.model_type
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"a student cannot be started in closed form from or in the architecture {model_type!r}; it is known for "
            f"{', '.join(ARCHITECTURES)}, whose layers end in a LayerNorm and have a plain feed-forward part: start "
            "from random weights or by SVD of the embeddings instead"
        )
    kind = getattr(config, "position_embedding_type", "absolute") or "absolute"
    if kind != "absolute":
        raise ModelError(
            f"a student cannot be started in closed form with position_embedding_type {kind!r}, whose scores have "
            'more than queries and keys in them; use "absolute", or start from random weights'
        )
    return str(model_type)


def embed(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return what the embeddings' LayerNorm gives (T, E), before any projection to the hidden size."""
    inputs = {"input_ids": batch.input_ids}
    if takes_token_types(model):
        inputs["token_type_ids"] = batch.token_type_ids
    base: Any = model.base_model
    return base.embeddings(**inputs)[batch.attention_mask.bool()]


def first_state(model: PreTrainedModel, embedded: Tensor) -> Tensor:
    """Return state 0 (T, H) from what `embed` returned."""
    projection = embeddings_projection(model)
    return embedded if projection is None else projection(embedded)


def embeddings_projection(model: PreTrainedModel) -> nn.Linear | None:
    """Return ELECTRA's map from the size of its embeddings to that of its hidden states, where there is one."""
    return getattr(model.base_model, "embeddings_project", None)


def run_layer(layer: EncoderLayer, state: Tensor, mask: Tensor) -> Tensor:
    """Return the state (T, H) after a layer; mask (B, S) bool tells the rows apart."""
    return run_forward(layer, run_attention(layer, state, mask).state).state


def run_attention(layer: EncoderLayer, state: Tensor, mask: Tensor) -> AttentionStates:
    """Run the attention half of a layer on the real tokens (T, H) of rows with a mask (B, S) bool."""
    query, key, value = layer.query(state), layer.key(state), layer.value(state)
    context = attend(query, key, value, mask, layer.num_heads)
    total = state + layer.attention_output(context)
    return AttentionStates(query, key, value, context, total, layer.attention_norm(total))


def run_forward(layer: EncoderLayer, attended: Tensor) -> ForwardStates:
    """Run the feed-forward half of a layer on what its attention half returned."""
    activated = layer.activation(layer.intermediate(attended))
    total = attended + layer.output(activated)
    return ForwardStates(activated, total, layer.output_norm(total))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """Attention of real tokens (T, A·D) inside their rows; returns the contexts (T, A·D)."""
    q, k, v = (_by_row(states, mask, num_heads) for states in (query, key, value))
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
    return context.transpose(1, 2)[mask].flatten(1)


def _by_row(states: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """(T, A·D) -> (B, A, S, D), zeros where there is padding."""
    padded = states.new_zeros(*mask.shape, num_heads, states.shape[1] // num_heads)
    padded[mask] = states.unflatten(1, (num_heads, -1))
    return padded.transpose(1, 2)


def _attribute(module: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)


class Tables(NamedTuple):
    """The embedding tables of a model; writing to them changes it."""

    words: Tensor  # (V, E)
    positions: Tensor  # (positions, E)
    first_position: int  # row of the first token of a text
    types: Tensor | None  # (token types, E)
    tasks: Tensor | None  # (task types, E) of an ERNIE, which reads every text as of the first


def tables(model: PreTrainedModel) -> Tables:
    """Return a model's embedding tables. RoBERTa counts positions from behind its padding's number."""
    embeddings: Any = model.base_model.embeddings
    positions = embeddings.position_embeddings
    first = 0 if positions.padding_idx is None else positions.padding_idx + 1
    types, tasks = (getattr(embeddings, f"{kind}_type_embeddings", None) for kind in ("token", "task"))
    return Tables(
        words=embeddings.word_embeddings.weight.detach(),
        positions=positions.weight.detach(),
        first_position=first,
        types=None if types is None else types.weight.detach(),
        tasks=None if tasks is None else tasks.weight.detach(),
    )
