"""Ranks, process group and seeds."""

from __future__ import annotations

import os
import random
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.comm import mpi_discovery
from safetensors import SafetensorError

from tinybert_ds.engine.deepspeed_private import leave_out_shared_memory_extension
from tinybert_ds.engine.ranks.rendezvous import count_local_rank, rendezvous, stated_patience, together
from tinybert_ds.errors import CheckpointError, ConfigError, RankError, UserError
from tinybert_ds.files import file_error, free_megabytes
from tinybert_ds.rank_environment import RankEnvironment, device_of, ranks_on_this_host, read_rank_environment

Value = TypeVar("Value")

RANK_PREFIX = ".rank-"
"""Of the files by which ranks find out whether they see the same directory."""
_TIMEOUT = timedelta(minutes=30)  # the longest that one rank may prepare (cold disks) while the others wait


class World(NamedTuple):
    """This process's place among the ranks."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_distributed() -> World:
    """Join the process group where the launcher's environment says so (`rank_environment`), or run alone.

    A single process listens on no port, ranks of one host on loopback only. On CPU the shared-memory extension of
    DeepSpeed, which would be compiled for minutes, is switched off; gloo does its work.
    """
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        leave_out_shared_memory_extension()
    place = read_rank_environment(os.environ)
    if place.warning:
        print(f"warning: {place.warning}", file=sys.stderr, flush=True)  # there is no log yet
    os.environ.update(place.variables())
    if place.world_size == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(accelerator.communication_backend_name(), store=dist.HashStore(), rank=0, world_size=1)
    elif place.address is None or place.port is None:
        _discover_mpi(place)
    if dist.is_initialized():
        return _join()
    patience = stated_patience()
    met = rendezvous(patience)  # lives until the process group has its server
    if "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = str(count_local_rank(met))
    with together(met, patience):
        return _join()


def _join() -> World:
    """Form the process group, take this rank's device, and let a first value go through all ranks."""
    accelerator = get_accelerator()
    deepspeed.init_distributed(verbose=False, timeout=_TIMEOUT)
    local_rank = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() != "cpu":
        local_rank = device_of(local_rank, accelerator.device_count())
        os.environ["LOCAL_RANK"] = str(local_rank)  # from where DeepSpeed's engine takes its device
        accelerator.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:  # or every rank would take all cores
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks_on_this_host(os.environ)))
    device = torch.device(accelerator.current_device_name())
    try:
        dist.all_reduce(torch.zeros(1, device=device))  # NCCL looks for its ways here, not before
    except dist.DistBackendError as error:
        if "Duplicate GPU" not in str(error):
            raise
        raise RankError(
            "two ranks of this host have the same GPU, of which NCCL takes one rank: start as many ranks as there are "
            "GPUs (deepspeed --num_gpus N), or train on the CPU (--no_cuda)"
        ) from error
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def _discover_mpi(place: RankEnvironment) -> None:
    """Ask MPI for the ranks; MASTER_ADDR and MASTER_PORT count where the launcher has set them."""
    stated = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ}
    try:
        mpi_discovery(verbose=False)
    except ImportError as error:
        raise ConfigError(
            f"started by {place.source}'s mpirun, but mpi4py does not load ({error}); install it: pip install "
            "'tinybert-ds[mpi]', or export MASTER_ADDR and MASTER_PORT"
        ) from error
    os.environ.update(stated)  # discovery takes rank 0's first address and always the same port
    found = (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if found != (place.rank, place.world_size):
        raise RankError(
            f"{place.source} has started rank {place.rank} of {place.world_size}, but mpi4py finds rank {found[0]} of "
            f"{found[1]}: it belongs to another MPI. Install it for this one: pip install --force-reinstall "
            "--no-binary mpi4py mpi4py"
        )


def barrier() -> None:
    """Wait for all ranks. NCCL is told its device, which it guesses otherwise, and says so."""
    on_nccl = dist.get_backend() == dist.Backend.NCCL
    dist.barrier(device_ids=[torch.cuda.current_device()] if on_nccl else None)


def mean_over_ranks(values: dict[str, float], world: World) -> dict[str, float]:
    """Average each value over the ranks, in float64."""
    names = sorted(values)
    stacked = torch.tensor([values[name] for name in names], dtype=torch.float64, device=world.device)
    dist.all_reduce(stacked, op=dist.ReduceOp.SUM)
    return dict(zip(names, (stacked / world.size).tolist(), strict=True))


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, on every rank, in rank order."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def run_on_main(world: World, action: Callable[[], Value]) -> Value:
    """Run `action` on rank 0 alone; every rank returns its value or raises its UserError, a refused file among them."""
    value: Value | None = None
    failure: UserError | None = None
    if world.is_main:
        try:
            value = action()
        except UserError as error:
            failure = error
        except OSError as error:
            failure = file_error(error)
            if failure is None:
                raise
    value, failure = broadcast_object((value, failure))
    if failure is not None:
        raise failure
    return cast(Value, value)


def write_on_main(world: World, path: Path, action: Callable[[], Value]) -> Value:
    """Run `action`, which writes a result to `path`, on rank 0 alone; every rank returns its value.

    Raises:
        CheckpointError: On every rank, when the disk is full or fails.
        UserError: On every rank, what `action` raises.
    """

    def write() -> Value:
        try:
            return action()
        except (OSError, SafetensorError) as error:  # safetensors has its own name for what the system says
            raise CheckpointError(
                f"{path} could not be written ({error}; {free_megabytes(path)} MB were free there). What was saved "
                "before stands: make room and start the same command again"
            ) from error

    return run_on_main(world, write)


def require_shared_directory(directory: Path, world: World) -> None:
    """Refuse a run whose ranks do not all see the output directory that rank 0 has made.

    Raises:
        ConfigError: Names the hosts that see another one, or none.
    """
    mark = directory / f"{RANK_PREFIX}{broadcast_object(uuid.uuid4().hex)}"
    if world.is_main:
        mark.touch()
    barrier()
    found = gather_objects((mark.exists(), os.uname().nodename))
    if world.is_main:
        mark.unlink(missing_ok=True)
    blind = sorted({host for sees_main, host in found if not sees_main})
    if blind:
        raise ConfigError(
            f"--output_dir {directory} is not the same directory on {', '.join(blind)} as on rank 0's host; "
            "put it on a file system that all hosts share"
        )


def require_same_everywhere(identity: Mapping[str, Any]) -> None:
    """Refuse a run whose ranks have read different things, such as copies of the data that are not copies.

    Raises:
        ConfigError: Some host differs from rank 0's; names it and what differs.
    """
    found = gather_objects((dict(identity), os.uname().nodename))
    first, _ = found[0]
    differing = {host: [name for name in first if own.get(name) != first[name]] for own, host in found if own != first}
    if differing:
        where = "; ".join(f"{host}: {', '.join(names)}" for host, names in sorted(differing.items()))
        raise ConfigError(
            f"the ranks do not run the same thing; what differs from rank 0's host: {where}. Give all hosts the same "
            "models, data and arguments"
        )


def seed_forward(seed: int, step: int, micro_batch: int, rank: int) -> None:
    """Seed the generators for one forward of one rank, so that dropout needs no state to resume from.

    Every student of a run gets the same seeds, those that it would have alone.
    """
    mixed = int(np.random.SeedSequence([seed, step, micro_batch, rank]).generate_state(1, np.uint64)[0]) >> 1
    # `torch.manual_seed` notes the stack for each kind of device that has not been started: a tenth of a small step.
    torch.default_generator.manual_seed(mixed)
    if (accelerator := get_accelerator()).device_name() != "cpu":
        accelerator.manual_seed(mixed)
    random.seed(mixed)
