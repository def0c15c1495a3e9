"""A sentence encoder as it is served: from what the tokeniser gives to the vector of each text, in one module.

B batch rows, S sequence length, H hidden size, V width of the vectors.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.export.runtimes import STATES, VECTORS
from tinybert_ds.models.sentence.head import SentenceHead


class VectorModel(nn.Module):
    """A transformer without a head, in eval mode, with its pooling, dense layers and normalisation."""

    def __init__(self, transformer: PreTrainedModel, head: SentenceHead) -> None:
        super().__init__()
        self.transformer = transformer
        self.head = head

    @property
    def config(self) -> Any:
        """The transformer's config, where the exporters look for it."""
        return self.transformer.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the last states (B, S, H) and the vectors (B, V) for integers (B, S), by the names that loaders ask
        for: those that pool by themselves take the states."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return {STATES: states, VECTORS: self.head(states, attention_mask)}
