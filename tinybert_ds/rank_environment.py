"""This process's place among those that a launcher has started, read from the environment; nothing is communicated.

Launchers may be nested: torchrun inside srun, mpirun whose daemons srun has started. The innermost counts. Where two of
them cannot both be right, or half of what is needed is missing, nobody is left to train alone by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tinybert_ds.errors import RankError


class RankEnvironment(NamedTuple):
    """A process's place.

    Args:
        rank: From 0.
        world_size: 1: the process runs alone.
        local_rank: Among the ranks of its host; None where nobody says it and the ranks have to be counted.
        address: Where rank 0 is; None for one process, and where MPI has to be asked.
        port: Where rank 0 listens, None as for the address.
        source: Who has said it.
        warning: What the user should be told, "" for nothing.
    """

    rank: int
    world_size: int
    local_rank: int | None
    address: str | None
    port: int | None
    source: str
    warning: str = ""

    def variables(self) -> dict[str, str]:
        """Return what is known as the variables that torch and DeepSpeed read."""
        named = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }
        return {name: str(value) for name, value in named.items() if value is not None}


class _Launcher(NamedTuple):
    name: str
    rank: str
    sizes: tuple[str, ...]  # the first that is set counts
    local_ranks: tuple[str, ...]


class _Place(NamedTuple):
    launcher: _Launcher
    rank: int
    size: int
    local_rank: int | None


_PLAIN = _Launcher("RANK and WORLD_SIZE", "RANK", ("WORLD_SIZE",), ("LOCAL_RANK",))
_MPI = (
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    _Launcher("MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), ("MV2_COMM_WORLD_LOCAL_RANK",)),
    _Launcher("MPICH", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID")),
)
_SLURM = _Launcher("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), ("SLURM_LOCALID",))
_PMIX = _Launcher("PMIx", "PMIX_RANK", ("PMIX_SIZE", "WORLD_SIZE"), ("PMIX_LOCAL_RANK",))

_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_LAUNCHERS_OF_RANKS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""Set by torchrun and by DeepSpeed's launcher, whose RANK and WORLD_SIZE therefore are no leftovers."""
_LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
)
"""How many ranks a host has: from torchrun, DeepSpeed's launcher or Slurm's script, Open MPI, MVAPICH, MPICH."""
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""Slurm's numbers for batch scripts, interactive shells and the like begin here; those of srun are far below."""
_FIRST_PORT, _PORTS = 15_000, 15_000  # below the ports that Linux hands out by itself


def read_rank_environment(environment: Mapping[str, str], *, communicates: bool = True) -> RankEnvironment:
    """Find a process's place in its environment; variables that are empty count as not set.

    Understood are torchrun, DeepSpeed's launcher, `RANK` and `WORLD_SIZE` set by hand, Open MPI, MVAPICH, MPICH and its
    relatives, srun, and PMIx with a size.

    Args:
        communicates: Whether the ranks will talk to each other; those that do not need no address.

    Raises:
        RankError: Something is missing, is no number or out of range, or two launchers contradict each other.
    """
    values = {name: value for name, value in environment.items() if value}
    places = [place for launcher in _launchers(values) if (place := _place(launcher, values)) is not None]
    if not places:
        return _alone(values)
    chosen, *others = places
    if chosen.launcher is _PLAIN and any(name in values for name in _LAUNCHERS_OF_RANKS):
        others = []
    _check_halves(chosen, values)
    for other in others:
        _check_pair(chosen, other)
    agreeing = [place for place in (chosen, *others) if (place.rank, place.size) == (chosen.rank, chosen.size)]
    local_rank = _optional_number(values, "LOCAL_RANK", 0)
    if local_rank is None:
        local_rank = next((place.local_rank for place in agreeing if place.local_rank is not None), None)
    if chosen.size == 1:
        return RankEnvironment(0, 1, local_rank or 0, None, None, chosen.launcher.name)
    address, port = _meeting_place(values, agreeing) if communicates else (None, None)
    return RankEnvironment(chosen.rank, chosen.size, local_rank, address, port, chosen.launcher.name)


def ranks_on_this_host(environment: Mapping[str, str]) -> int:
    """Return how many ranks share this host, as their launcher says; 1 where it says nothing."""
    stated = (environment.get(name, "") for name in _LOCAL_SIZES)
    return max(1, next((int(number) for number in stated if number.isdecimal()), 1))


def device_of(local_rank: int, visible: int) -> int:
    """Return the number of a rank's device among those that it sees.

    A launcher may show each rank its own device alone (`srun --gpus-per-task 1`).

    Args:
        local_rank: Among the ranks of the host.
        visible: How many devices this process sees.

    Raises:
        RankError: There are several devices, and fewer than ranks.
    """
    if local_rank < visible:
        return local_rank
    if visible == 1:
        return 0
    raise RankError(
        f"local rank {local_rank} has no device of its own: this process sees {visible} on this host (LOCAL_RANK, "
        "CUDA_VISIBLE_DEVICES). Start as many ranks as there are devices, or add --no_cuda"
    )


def first_host(nodes: str) -> str:
    """Return the first of Slurm's list of nodes: `gpu[07-09,12]-ib,login` begins with `gpu07-ib`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _launchers(values: Mapping[str, str]) -> Sequence[_Launcher]:
    """Return the launchers from the innermost; srun's only inside a step of its own.

    The script of a batch job is one process with the numbers of the whole job. So is a shell on a compute node, hence
    the size of the step first.
    """
    return (_PLAIN, *_MPI, *((_SLURM,) if _in_step(values) else ()), _PMIX)


def _in_step(values: Mapping[str, str]) -> bool:
    step = values.get("SLURM_STEP_ID", "")
    return bool(re.fullmatch(r"[0-9]{1,10}", step)) and int(step) < _FIRST_SPECIAL_STEP


def _place(launcher: _Launcher, values: Mapping[str, str]) -> _Place | None:
    size_name = next((name for name in launcher.sizes if name in values), None)
    if launcher.rank not in values or size_name is None:
        return None
    rank, size = _number(values, launcher.rank, 0), _number(values, size_name, 1)
    if rank >= size:
        raise RankError(
            f"{launcher.rank} is {rank} and {size_name} is {size}; ranks are counted from 0, so it must be below "
            f"{size}. Give every process a rank of its own, and all of them the same size"
        )
    local_name = next((name for name in launcher.local_ranks if name in values), None)
    return _Place(launcher, rank, size, None if local_name is None else _number(values, local_name, 0))


def _number(values: Mapping[str, str], name: str, lowest: int, highest: int = 10**9) -> int:
    text = values[name]
    if not re.fullmatch(r"[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
        allowed = f"from {lowest} to {highest}" if highest < 10**9 else f"of at least {lowest}"
        raise RankError(
            f"the environment variable {name} is {text[:40]!r}{'...' * (len(text) > 40)}; it must be a whole number "
            f"{allowed}. Mend it, or unset it with the others of its launcher to run one process"
        )
    return int(text)


def _optional_number(values: Mapping[str, str], name: str, lowest: int, highest: int = 10**9) -> int | None:
    return _number(values, name, lowest, highest) if name in values else None


def _check_halves(chosen: _Place, values: Mapping[str, str]) -> None:
    """Refuse a RANK or a WORLD_SIZE, set without the other, that is not the launcher's."""
    for name, own in (("RANK", chosen.rank), ("WORLD_SIZE", chosen.size)):
        stated = _optional_number(values, name, 0)
        if stated is not None and stated != own:
            raise RankError(
                f"{name} is {stated}, but {chosen.launcher.name} has started rank {chosen.rank} of {chosen.size} "
                f"({chosen.launcher.rank}); they contradict each other. Unset {name}"
            )


def _check_pair(inner: _Place, outer: _Place) -> None:
    """Refuse two launchers that cannot both be right.

    Inner ranks are at least as many as outer ones. Where they are as many, they are the same, but for the daemons of an
    mpirun, which srun has started one on each host.
    """
    daemons = inner.launcher in _MPI and outer.launcher is _SLURM
    if outer.size < inner.size or (outer.size == inner.size and (outer.rank == inner.rank or daemons)):
        return
    raise RankError(
        f"{inner.launcher.name} say{'s' if inner.launcher is not _PLAIN else ''} rank {inner.rank} of {inner.size} "
        f"({inner.launcher.rank}), but {outer.launcher.name} has started rank {outer.rank} of {outer.size} "
        f"({outer.launcher.rank}); they contradict each other. Unset the variables that are left over from something "
        f"else: {inner.launcher.rank} and {inner.launcher.sizes[0]}, or {outer.launcher.rank} and "
        f"{outer.launcher.sizes[0]}"
    )


def _meeting_place(values: Mapping[str, str], agreeing: Sequence[_Place]) -> tuple[str | None, int | None]:
    """Return rank 0's address and port; None for what MPI has to be asked about.

    Raises:
        RankError: They are not set and cannot be derived.
    """
    address, port = values.get("MASTER_ADDR"), _optional_number(values, "MASTER_PORT", 1, 65535)
    launchers = [place.launcher for place in agreeing]
    if _SLURM in launchers:
        return address or _slurm_address(values), port or _slurm_port(values)
    missing = [name for name in _ADDRESS if name not in values]
    if missing and not any(launcher in _MPI for launcher in launchers):
        raise RankError(
            f"rank {agreeing[0].rank} of {agreeing[0].size} ({agreeing[0].launcher.name}) does not know where rank 0 "
            f"is: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set. Export MASTER_ADDR, the "
            "address of rank 0's host, and MASTER_PORT, a free port there, the same for all ranks"
        )
    return address, port


def _slurm_address(values: Mapping[str, str]) -> str:
    names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    nodes = next((values[name] for name in names if name in values), None)
    if values.get("SLURM_STEP_NUM_NODES") == "1" or (nodes is not None and not set("[,") & set(nodes)):
        return "127.0.0.1"
    found = first_host(nodes) if nodes else values.get("SLURM_LAUNCH_NODE_IPADDR")
    if not found:
        raise RankError(
            "srun has started this process, but neither SLURM_STEP_NODELIST nor SLURM_LAUNCH_NODE_IPADDR is set to say "
            "where rank 0 is; export MASTER_ADDR, the address of the first node"
        )
    return found


def _slurm_port(values: Mapping[str, str]) -> int:
    """Return a port that all ranks of a step compute alike and other jobs and steps of a node hardly share."""
    if "SLURM_JOB_ID" not in values:
        raise RankError(
            "srun has started this process, but SLURM_JOB_ID is not set, from which all ranks derive a port; export "
            "MASTER_PORT, a free port of rank 0's host"
        )
    job, step = _number(values, "SLURM_JOB_ID", 0), _number(values, "SLURM_STEP_ID", 0)
    return _FIRST_PORT + (job * 17 + step) % _PORTS


def _alone(values: Mapping[str, str]) -> RankEnvironment:
    """Return the place of a process that no launcher has placed.

    Raises:
        RankError: Some variable says that there are others.
    """
    in_job = "SLURM_JOB_ID" in values
    warning = ""
    _refuse_half(_PLAIN, values, ("LOCAL_RANK", *(() if in_job else _ADDRESS)))
    for launcher in (*_MPI, *((_SLURM,) if _in_step(values) else ())):
        _refuse_half(launcher, values)
    if _number(values, "PMIX_RANK", 0) if "PMIX_RANK" in values else 0:
        _refuse_half(_PMIX, values)
    elif "PMIX_RANK" in values:
        warning = (
            "PMIX_RANK is 0, and nothing says how many processes there are: this one runs alone. If there are others, "
            "export WORLD_SIZE to all"
        )
    tasks = _optional_number(values, "SLURM_NTASKS", 1) or 1
    if not _in_step(values) and _optional_number(values, "SLURM_PROCID", 0):
        raise RankError(
            f"SLURM_PROCID is '{values['SLURM_PROCID'][:40]}', so srun has started this process beside others, but "
            "SLURM_STEP_ID does not name a step, so it cannot find them. Hand all SLURM_* variables on, into "
            "containers too, or unset SLURM_PROCID to run one process"
        )
    if (in_job or "SLURM_PROCID" in values) and tasks > 1 and not _in_step(values):
        warning = (
            f"Slurm has given job {values.get('SLURM_JOB_ID', '?')[:20]} {tasks} tasks (SLURM_NTASKS), but srun has "
            f"not started this process: it runs alone. For {tasks} ranks write srun before the command, or submit "
            "launchers/run_slurm.sbatch"
        )
    return RankEnvironment(0, 1, _optional_number(values, "LOCAL_RANK", 0) or 0, None, None, "", warning)


def _refuse_half(launcher: _Launcher, values: Mapping[str, str], more: Sequence[str] = ()) -> None:
    """Refuse variables that speak of several processes without saying which of how many this one is."""
    needed = (launcher.rank, launcher.sizes[0])
    found = [name for name in (launcher.rank, *launcher.sizes, *more) if name in values]
    if launcher is _SLURM:
        found = [name for name in found if name == launcher.rank]  # sizes are also those of the job
    if not found or (launcher.rank not in values and values.get(launcher.sizes[0]) == "1"):
        return
    for name in found:
        if name != "MASTER_ADDR":
            _number(values, name, 0)
    missing = [name for name in needed if name not in values]
    raise RankError(
        f"{' and '.join(f'{name} is {values[name][:40]!r}' for name in found)}, but {' and '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not set, so this process cannot know its place among others. Set "
        f"{' and '.join(needed)} in every process, or unset {' and '.join(found)} to run one process"
    )
