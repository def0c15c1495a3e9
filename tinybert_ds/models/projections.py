"""Queries, keys and values of architectures that do not go through transformers' AttentionInterface.

They are read behind the linear layers that make them, by hooks. B batch rows, S sequence length, A heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.errors import ModelError

VECTORS = ("queries", "keys", "values")


class Family(NamedTuple):
    """Where an architecture makes its queries, keys and values."""

    names: tuple[str, str, str]  # children of the module of a layer's attention that make them
    no_scores: str = ""  # why its attention scores are not the products of these; "": they are
    read: Callable[[Any, nn.Module, str], Tensor] | None = None  # (B, S, A·D) of what such a child returns; None: it is

    def find(self, model: PreTrainedModel) -> list[nn.Module]:
        """Return the attention modules of a model by layer.

        Raises:
            ModelError: It has not one in each layer.
        """
        wanted = set(self.names)
        found = [each for each in model.base_model.modules() if wanted <= {name for name, _ in each.named_children()}]
        depth = model.config.num_hidden_layers
        if len(found) != depth:
            raise ModelError(
                f"{type(model).__name__} (model_type {model.config.model_type!r}) has {len(found)} modules with "
                f"{', '.join(sorted(wanted))} for its {depth} layers; its attention cannot be read: leave it out with "
                "--attention_weight 0"
            )
        return found


def _of_deberta(output: Tensor, attention: nn.Module, kind: str) -> Tensor:
    """One projection makes all three, head by head, and two of them get a bias later."""
    heads: Any = attention.num_attention_heads
    part = output.unflatten(2, (heads, -1)).chunk(3, dim=3)[VECTORS.index(kind)].flatten(2)
    bias = {"queries": attention.q_bias, "values": attention.v_bias}.get(kind)
    return part if bias is None else part + bias


def _of_longformer(output: Tensor, attention: nn.Module, kind: str) -> Tensor:
    """Positions come first; queries are divided in place afterwards."""
    return output.transpose(0, 1).clone()


def _of_ibert(output: tuple[Tensor, Any], attention: nn.Module, kind: str) -> Tensor:
    """A scale of quantisation comes with it."""
    return output[0]


def _of_squeezebert(output: Tensor, attention: nn.Module, kind: str) -> Tensor:
    """Convolutions have positions last."""
    return output.transpose(1, 2)


_BERT = ("query", "key", "value")
_POSITIONS = "adds terms of positions to its scores, which queries and keys do not show"

FAMILIES: Mapping[str, Family] = {
    "deberta": Family(("in_proj",) * 3, _POSITIONS, _of_deberta),
    "deberta-v2": Family(("query_proj", "key_proj", "value_proj"), _POSITIONS),
    "mpnet": Family(("q", "k", "v"), _POSITIONS),
    "roformer": Family(_BERT, "turns queries and keys by their positions behind the projections where they are read"),
    "longformer": Family(_BERT, "has scores inside a window of tokens alone", _of_longformer),
    "big_bird": Family(_BERT, "has scores between some blocks of tokens alone where rows are long"),
    "nystromformer": Family(_BERT, "puts landmarks in the place of scores"),
    "rembert": Family(_BERT),
    "megatron-bert": Family(_BERT),
    "convbert": Family(_BERT, "makes a part of its heads by convolutions, which have no scores"),
    "ibert": Family(_BERT, read=_of_ibert),
    "luke": Family(_BERT),
    "squeezebert": Family(_BERT, read=_of_squeezebert),
    "xlm": Family(("q_lin", "k_lin", "v_lin")),
    "flaubert": Family(("q_lin", "k_lin", "v_lin")),
}
"""By model_type; what is missing goes through the AttentionInterface, or cannot be read."""

BLIND_TO_PADDING: Mapping[str, str] = {"fnet": "mixes all positions of a row, padding included, and has no attention"}
"""Why the rows of some architectures depend on what they are padded to, by model_type."""

CHANGING_LENGTHS: Mapping[str, str] = {
    "funnel": "makes its rows shorter from block to block, so that its states are not those of tokens"
}
"""Why the layers of some architectures cannot be compared, by model_type."""


def show_projections(
    model: PreTrainedModel, family: Family, layers: Iterable[int], kinds: Iterable[str], calls: Callable[[], Any]
) -> None:
    """Let the projections of some layers hand out what they return, from now on.

    Args:
        layers: Numbers from 0.
        kinds: Of "queries", "keys" and "values".
        calls: Returns the collector (`capture.AttentionCalls`) of the forward pass that is under way, if any.
    """
    attentions = family.find(model)
    kinds = tuple(kinds)
    for number in sorted(set(layers)):
        for kind in kinds:
            projection = attentions[number].get_submodule(family.names[VECTORS.index(kind)])
            projection.register_forward_hook(
                partial(_show, calls=calls, attention=attentions[number], read=family.read, kind=kind, number=number)
            )


def _show(
    module: nn.Module,
    inputs: Any,
    output: Any,
    *,
    calls: Callable[[], Any],
    attention: nn.Module,
    read: Callable[[Any, nn.Module, str], Tensor] | None,
    kind: str,
    number: int,
) -> None:
    """Keep what a projection returns for the tokens of a batch: (B, A, S, D)."""
    collected = calls()
    if collected is None or number in getattr(collected, kind):
        return  # recomputed for the backward pass; or called again for embeddings of positions (DeBERTa-v2)
    states = output if read is None else read(output, attention, kind)
    heads: Any = next(
        getattr(attention, name) for name in ("num_attention_heads", "num_heads", "n_heads") if hasattr(attention, name)
    )
    captured = states[:, : collected.length].unflatten(2, (heads, -1)).transpose(1, 2)
    getattr(collected, kind)[number] = captured
    collected.scalings[number] = captured.shape[3] ** -0.5
