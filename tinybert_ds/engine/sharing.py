"""Which ranks work in the same directory: all of them on a shared file system, those of one host otherwise."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from tinybert_ds.engine.distributed import World, broadcast_object


class Place(NamedTuple):
    """A rank's place among those that see the same directory: its number, and how many they are."""

    number: int
    size: int


def place_in_directory(directory: Path, world: World) -> Place:
    """Return this rank's place among those that find each other's files in a directory; called on all ranks."""
    prefix = f".rank-{broadcast_object(uuid.uuid4().hex)}-"
    own = directory / f"{prefix}{world.rank}"
    own.touch()
    dist.barrier()
    seen = sorted(int(name.removeprefix(prefix)) for name in os.listdir(directory) if name.startswith(prefix))
    dist.barrier()
    own.unlink()
    return Place(seen.index(world.rank), len(seen))
