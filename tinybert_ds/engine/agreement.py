"""What the ranks settle together between two steps, so that all of them stop at the same place, or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from tinybert_ds.engine.distributed import World, gather_objects
from tinybert_ds.errors import DataError, UserError

Item = TypeVar("Item")

_GO_ON, _STOP, _FAILED = range(3)


class Agreement:
    """Decisions by the greatest wish, over CPU memory: the accelerator is not waited for.

    Args:
        world: The ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        separate = world.size > 1 and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if separate else None

    def draw(self, items: Iterator[Item], *, stop: bool) -> Item | None:
        """Draw the next item on every rank.

        Args:
            items: Inexhaustible here.
            stop: Whether this rank wishes to stop.

        Returns:
            The item; None on every rank when any of them wishes to stop.

        Raises:
            UserError: On every rank, when any of them could not draw: what that rank met.
        """
        item, failure = None, None
        try:
            item = next(items)
        except UserError as error:
            failure = error
        except OSError as error:
            failure = DataError(f"rank {self._world.rank} cannot read the training data: {error}")
        verdict = self._greatest(_FAILED if failure else _STOP if stop else _GO_ON)
        if verdict == _FAILED:
            failures = gather_objects(failure)
            raise next(found for found in failures if found is not None)
        return None if verdict == _STOP else item

    def any_wishes(self, *, stop: bool) -> bool:
        """Whether any rank wishes to stop; the same on all of them."""
        return self._greatest(_STOP if stop else _GO_ON) == _STOP

    def _greatest(self, wish: int) -> int:
        if self._world.size == 1:
            return wish
        box = torch.tensor(wish)
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._group)
        return int(box)
