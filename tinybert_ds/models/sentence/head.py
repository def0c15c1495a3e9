"""From token states to sentence vectors, as modules of torch.

B batch rows, S sequence length, H hidden size, P pooled width, V width of the vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.sentence.modules import Dense, Normalise, SentenceModules
from tinybert_ds.types import Batch, EncoderOutput

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""Classes of `torch.nn` that may stand behind a dense layer."""


def pool(states: Tensor, attention_mask: Tensor, pooling: tuple[str, ...]) -> Tensor:
    """Return one vector for each row.

    Args:
        states: (B, S, H), padded on the right.
        attention_mask: (B, S), 1 = real token.
        pooling: Of `modules.POOLINGS`.

    Returns:
        (B, len(pooling) · H), one part behind the other, in float32 at least.
    """
    states = _wide(states)
    mask = attention_mask.to(states.dtype)[:, :, None]
    lengths = mask.sum(dim=1).clamp_min(1)
    parts = [_pool_one(states, mask, lengths, name) for name in pooling]
    return torch.cat(parts, dim=-1)


def _pool_one(states: Tensor, mask: Tensor, lengths: Tensor, name: str) -> Tensor:
    """One pooling (B, H) of states (B, S, H) with a mask (B, S, 1) and row lengths (B, 1)."""
    if name == "cls":
        return states[:, 0]
    if name == "max":
        return states.masked_fill(mask == 0, float("-inf")).amax(dim=1)
    if name == "mean":
        return (states * mask).sum(dim=1) / lengths
    if name == "mean_sqrt_len_tokens":
        return (states * mask).sum(dim=1) / lengths.sqrt()
    if name == "weightedmean":
        weights = mask * torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)[None, :, None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    assert name == "lasttoken", name
    last = (lengths.long() - 1)[:, :, None].expand(-1, 1, states.shape[2])
    return states.gather(1, last)[:, 0]


class DenseLayer(nn.Module):
    """A linear layer and the function behind it."""

    def __init__(self, layer: Dense) -> None:
        super().__init__()
        width, features = layer.weight.shape
        self.linear = nn.Linear(features, width, bias=layer.bias is not None)
        with torch.no_grad():
            self.linear.weight.copy_(layer.weight)
            if layer.bias is not None:
                self.linear.bias.copy_(layer.bias)
        self.activation: nn.Module = getattr(nn, layer.activation)()

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (B, V) for (B, P), in float32 at least."""
        return _wide(self.activation(self.linear(vectors.to(self.linear.weight.dtype))))


class NormaliseLayer(nn.Module):
    """Vectors of length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (B, V) for (B, V)."""
        return F.normalize(vectors, dim=-1)


class SentenceHead(nn.Module):
    """Pooling and the layers behind it.

    Args:
        modules: What they are; the weights are copied.
    """

    def __init__(self, modules: SentenceModules) -> None:
        super().__init__()
        self.pooling = modules.pooling
        self.layers = nn.ModuleList(
            NormaliseLayer() if isinstance(layer, Normalise) else DenseLayer(layer) for layer in modules.layers
        )

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (B, V) of states (B, S, H) with a mask (B, S)."""
        return self.finish(self.unfinished(states, attention_mask))

    def unfinished(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (B, V) as they are before their length is made 1, where that comes last."""
        vectors = pool(states, attention_mask, self.pooling)
        for layer in self.layers[: len(self.layers) - self._normalises]:
            vectors = layer(vectors)
        return vectors

    def finish(self, vectors: Tensor) -> Tensor:
        """Return the vectors (B, V) of what `unfinished` has returned."""
        return self.layers[-1](vectors) if self._normalises else vectors

    @property
    def _normalises(self) -> bool:
        return len(self.layers) > 0 and isinstance(self.layers[-1], NormaliseLayer)


class SentenceEncoder(nn.Module):
    """A whole sentence encoder: its vectors stand in the place of logits, so that they can be kept like these.

    Args:
        encoder: Returns the transformer's last state, and nothing else.
        head: What makes vectors of it.
    """

    def __init__(self, encoder: CapturingEncoder, head: SentenceHead) -> None:
        super().__init__()
        assert encoder.states == (encoder.config.num_hidden_layers,), encoder.states
        self.encoder = encoder
        self.head = head

    @property
    def config(self) -> Any:
        """The transformer's config; DeepSpeed looks for it here."""
        return self.encoder.config

    def forward(self, batch: Batch, teacher_output: EncoderOutput | None = None) -> EncoderOutput:
        """Return the vectors (B, V) of a batch as its logits."""
        (state,) = self.encoder(batch).hidden_states
        return EncoderOutput((), (), (), (), self.head(state, batch.attention_mask))


def _wide(values: Tensor) -> Tensor:
    """Sums over a text, and lengths, are taken in no half precision."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
