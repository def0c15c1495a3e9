"""Which layers stay in float: those without which a model in 8 bits loses too much, found by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """Layers that stay in float, worst first, and what is lost with all others in 8 bits."""

    in_float: tuple[str, ...]
    loss: float
    loss_of_all: float  # with every layer in 8 bits


def choose_layers(layers: Sequence[str], loss: Callable[[frozenset[str]], float], allowed: float) -> Choice:
    """Return the layers to keep in float so that the loss is at most `allowed`, few of them.

    Nothing is tried where all layers in 8 bits lose little enough. Otherwise each layer is put back alone; those that
    bring back most go first, one after the other, until it is enough or all are in float.

    Args:
        loss: What is lost with these layers in float and all others in 8 bits.
    """
    of_all = loss(frozenset())
    if of_all <= allowed:
        return Choice((), of_all, of_all)
    alone = {layer: loss(frozenset([layer])) for layer in layers}
    in_float: list[str] = []
    left = of_all
    for layer in sorted(layers, key=lambda layer: alone[layer]):
        in_float.append(layer)
        left = alone[layer] if len(in_float) == 1 else loss(frozenset(in_float))
        if left <= allowed:
            break
    return Choice(tuple(in_float), left, of_all)
