"""What a sentence-transformers directory says of the way from token states to sentence vectors, as plain values.

H hidden size of the transformer, V width of the vectors. The package itself is not needed: the files are JSON and
safetensors, in the layout that all of its versions read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""By sentence-transformers' names, in the order in which several are put side by side."""


class Dense(NamedTuple):
    """A linear layer on vectors, with the function behind it by the name of its class in `torch.nn`."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    activation: str = "Identity"


class Normalise(NamedTuple):
    """Vectors are divided by their length."""


Layer = Dense | Normalise


@dataclass(frozen=True)
class SentenceModules:
    """The modules behind a transformer, and how texts come to it."""

    pooling: tuple[str, ...]  # of `POOLINGS`; several stand side by side
    layers: tuple[Layer, ...] = ()
    max_seq_length: int | None = None  # tokens that a text is cut to; None: what the transformer takes
    lower_case: bool = False  # texts are lower-cased before the tokeniser, whatever that does
    prompts: Mapping[str, str] = field(default_factory=dict)  # name -> what stands before a text
    default_prompt: str | None = None  # name of the one that stands before texts of which nothing is said
    include_prompt: bool = True  # whether the prompt's tokens are pooled

    @property
    def normalised(self) -> bool:
        """Whether the vectors have length 1."""
        return bool(self.layers) and isinstance(self.layers[-1], Normalise)

    def width(self, hidden_size: int) -> int:
        """V, for a transformer of this hidden size."""
        widths = [len(layer.weight) for layer in self.layers if isinstance(layer, Dense)]
        return widths[-1] if widths else hidden_size * len(self.pooling)
