"""What the ranks settle together between two steps, so that all of them stop at the same place, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from tinybert_ds.engine.ranks.process_group import World, gather_objects
from tinybert_ds.errors import DataError, UserError

Item = TypeVar("Item")

_GO_ON, _STOP, _FAILED = range(3)


class Consensus:
    """Decisions by the greatest wish, over CPU memory: the accelerator is not waited for."""

    def __init__(self, world: World) -> None:
        self._world = world
        separate = world.size > 1 and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if separate else None

    def draw(self, items: Iterator[Item], *, stop: bool) -> Item | None:
        """Draw the next item on every rank.

        Returns:
            The item; None on every rank when any of them wishes to stop.

        Raises:
            UserError: On every rank, when any of them could not draw: what that rank met.
        """
        item, failure = _attempt(lambda: next(items), self._world)
        verdict = self._greatest(_FAILED if failure else _STOP if stop else _GO_ON)
        if verdict == _FAILED:
            _raise_first(gather_objects(failure))
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


def read_together(read: Callable[[], Item], world: World) -> Item:
    """Read something on every rank, each its own part, without an Consensus.

    Raises:
        UserError: On every rank, when any of them could not read: what that rank met.
    """
    item, failure = _attempt(read, world)
    _raise_first(gather_objects(failure))
    return cast(Item, item)


def _raise_first(failures: Sequence[UserError | None]) -> None:
    """Raise the first failure that some rank has met; do nothing when there is none."""
    for failure in failures:
        if failure is not None:
            raise failure


def _attempt(read: Callable[[], Item], world: World) -> tuple[Item | None, UserError | None]:
    try:
        return read(), None
    except UserError as error:
        return None, error
    except OSError as error:
        return None, DataError(f"rank {world.rank} cannot read its data: {error}")
