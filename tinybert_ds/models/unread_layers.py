"""What a frozen encoder need not compute: the layers above the last one that anybody reads."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.probe import in_eval_mode, probe_batch

logger = logging.getLogger(__name__)


def drop_unread_layers(encoder: CapturingEncoder) -> int:
    """Take the layers above the last one that is read out of an encoder, for good, and return how many they were.

    With a layer map such as "first", a teacher of 12 layers then runs the student's 4. A probe makes sure that nothing
    of what the encoder returns changes; where it does (an architecture that shares its layers, or normalises the last
    state only), or where the layers are not found, all of them stay.

    Args:
        encoder: A teacher that is not saved; not yet inside an engine, and already checked by `check_capture`.
    """
    depth = encoder.model.config.num_hidden_layers
    read = [*encoder.states, *(layer + 1 for layer in encoder.attention_layers)]
    if encoder.logits or max(read, default=depth) >= depth:
        return 0
    places = [
        (module, name)
        for module in encoder.model.base_model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(places) != 1:
        return 0
    ((parent, name),) = places
    layers = getattr(parent, name)
    before = _probed(encoder)
    setattr(parent, name, layers[: max(read)])
    after = _probed(encoder)
    if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
        setattr(parent, name, layers)
        return 0
    dropped = depth - max(read)
    logger.info("the teacher's last %d of %d layers are not read and not computed", dropped, depth)
    return dropped


def _probed(encoder: CapturingEncoder) -> list[Tensor]:
    with in_eval_mode(encoder), torch.no_grad():
        output = encoder(probe_batch(encoder.model, sequence_length=8))
    return [*output.hidden_states, *output.queries, *output.keys, *output.values]
