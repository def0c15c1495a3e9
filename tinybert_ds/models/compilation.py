"""torch.compile of encoders, in place: names, weights and what is saved stay as they are."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

import torch

from tinybert_ds.models.capture import CapturingEncoder

logger = logging.getLogger(__name__)


def compile_encoders(encoders: Iterable[CapturingEncoder], device: torch.device) -> None:
    """Let torch.compile run the encoders from their next forward on, where that pays.

    Args:
        device: Where they run. On a CPU nothing was gained, and minutes went into compiling: nothing is done, and said.
    """
    if device.type == "cpu":
        _say_that_cpus_gain_nothing()
        return
    for encoder in encoders:
        compile_encoder(encoder)


def compile_encoder(encoder: CapturingEncoder, backend: str = "inductor") -> None:
    """Compile what the encoder runs, for any batch shape; the collector of queries and keys stays outside of graphs."""
    model = encoder.model if encoder.logits else encoder.model.base_model
    model.compile(backend=backend, dynamic=True)


@functools.cache
def _say_that_cpus_gain_nothing() -> None:
    logger.info("--compile has no effect: on a CPU it costs minutes and gains nothing")
