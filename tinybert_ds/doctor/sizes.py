"""The sizes of models from their configs alone: nothing is loaded, nothing is allocated."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel

from tinybert_ds.doctor.memory import ModelSize
from tinybert_ds.models.student import count_parameters


def size_of(config: Any) -> ModelSize:
    """Return the size of what a config describes; pooler included."""
    with torch.device("meta"):
        parameters = count_parameters(AutoModel.from_config(config))
    return ModelSize(
        parameters=parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None)
        or getattr(config, "hidden_dim", 4 * config.hidden_size),
        heads=config.num_attention_heads,
        attention_dropout=getattr(config, "attention_probs_dropout_prob", 0.0) or 0.0,
    )
