"""Gradient checkpointing: a model in training keeps the inputs of its layers and computes the rest again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.wide_products import wide_products


def recompute_layers(encoder: CapturingEncoder, device: torch.device) -> None:
    """Let the encoder recompute its layers in the backward pass of training.

    Losses and gradients stay what they are, queries and keys too; the time grows by the student's forward pass.

    Raises:
        ModelError: An architecture whose layers transformers cannot recompute.
    """
    model = encoder.model
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"--gradient_checkpointing: transformers cannot recompute the layers of {type(model).__name__}; leave the "
            "flag out"
        )

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), wide_products(model, device)  # the forward pass runs inside it anyway

    options: dict[str, Any] = {"use_reentrant": False}  # the other form hands out queries without gradients
    if device.type == "cpu":
        options["context_fn"] = contexts  # elsewhere the two are empty, and torch.compile takes none
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
