"""Does the job fit: the models beside each other, the batch, the memory, the disk, the shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.doctor.findings import Finding, gib
from tinybert_ds.doctor.memory import Estimate, Job, Precision, checkpoint_bytes, estimate, precision_of
from tinybert_ds.errors import UserError
from tinybert_ds.strict_formats import read_json

CONFIG_DIRECTORY = Path(__file__).resolve().parents[2] / "ds_configs"
PREFERRED = {
    "cpu": ("zero0_fp32", "zero1_fp32", "zero2_fp32", "zero3_fp32"),
    "cpu with bf16": ("zero0_autocast_bf16", "zero1_fp32", "zero2_fp32", "zero3_fp32"),
    "bf16": ("zero2_bf16", "zero2_offload_bf16", "zero3_bf16", "zero3_offload_bf16"),
    "fp16": ("zero2_fp16", "zero3_fp16"),
}
"""The shipped configs to try, by what the device computes; the first that fits is recommended."""
KEPT_CHECKPOINTS = 3  # --save_total_limit 2, and the one that is being written


@dataclasses.dataclass(frozen=True)
class Room:
    """What a rank may take."""

    device_bytes: int
    host_bytes: int  # beside a GPU; 0 on a CPU, where the device is the host


def candidates(accelerator: Mapping[str, Any], stated: Path | None) -> list[Path]:
    """Return the configs to try: the stated one, or the shipped ones that the device can compute with."""
    if stated is not None:
        return [stated]
    half = "bf16" if accelerator["bf16"] else "fp16"
    on_cpu = "cpu with bf16" if accelerator["bf16"] else "cpu"
    kind = on_cpu if accelerator["kind"] == "cpu" else half
    return [CONFIG_DIRECTORY / f"{name}.json" for name in PREFERRED[kind]]


def room_of(facts: Mapping[str, Any], slots: int) -> Room | None:
    """Return what a rank may take on a host that is shared by `slots` of them; None where that is not known."""
    memory = facts["memory_bytes"]
    accelerator = facts["accelerator"]
    if accelerator["kind"] == "cpu":
        return None if memory is None else Room(memory // slots, 0)
    return Room(min(accelerator["memory_bytes"]), (memory or 0) // slots)


def check_batch(train_batch_size: int, world_size: int, accumulation: int) -> list[Finding]:
    """Judge how the global batch divides."""
    parts = world_size * accumulation
    rows, rest = divmod(train_batch_size, parts)
    what = f"--train_batch_size {train_batch_size} over {world_size} rank(s) x {accumulation} accumulation step(s)"
    if rest or not rows:
        fitting = " or ".join(str(size) for size in (rows * parts, (rows + 1) * parts) if size)
        return [Finding("problem", f"{what} does not divide", f"take {fitting}")]
    if rows < 4 and world_size > 1:
        return [
            Finding("note", f"{what}: {rows} row(s) a rank leave it mostly waiting", "a larger batch, or fewer ranks")
        ]
    return [Finding("ok", f"{what}: {rows} rows a rank and step")]


def check_memory(job: Job, room: Room | None, configs: Sequence[Path]) -> list[Finding]:
    """Estimate each config, list them, and say which one to take."""
    if room is None:
        return [Finding("note", "the free memory of this host is not known; no estimate is made")]
    findings, fitting = [], None
    for path in configs:
        needed = estimate(job, _precision(path))
        fits = _fits(needed, room)
        fitting = fitting or (path if fits else None)
        findings.append(Finding("ok" if fits else "note", f"{path.name}: {_describe(needed, room)}"))
    if fitting is not None:
        largest = _largest_parts(estimate(job, _precision(fitting)))
        findings.append(Finding("ok", f"take --deepspeed_config {fitting}; most of it is {largest}"))
        return findings
    return [*findings, Finding("problem", "no config fits into the memory of a rank", _way_out(job, room, configs))]


def check_disk(job: Job, free_bytes: int) -> Finding:
    """Judge whether the checkpoints fit."""
    needed = KEPT_CHECKPOINTS * checkpoint_bytes(job)
    what = f"checkpoints take about {gib(needed)} of {gib(free_bytes)} of free disk"
    if needed > free_bytes:
        return Finding("problem", what, "another --output_dir, or --save_total_limit 1")
    return Finding("ok", what)


def attempt(what: str, action: Callable[[], str]) -> Finding:
    """Run a check that raises `UserError` with its fix in the message; return what came of it."""
    try:
        return Finding("ok", f"{what}: {action()}")
    except UserError as error:
        return Finding("problem", f"{what}: {error}")


def _precision(path: Path) -> Precision:
    return precision_of(read_json(path, "--deepspeed_config"))


def _fits(needed: Estimate, room: Room) -> bool:
    return needed.device_bytes <= room.device_bytes and needed.host_bytes <= max(room.host_bytes, 0)


def _describe(needed: Estimate, room: Room) -> str:
    text = f"about {gib(needed.device_bytes)} a rank, of {gib(room.device_bytes)}"
    if needed.host:
        text += f"; {gib(needed.host_bytes)} of CPU memory, of {gib(room.host_bytes)}"
    return text


def _largest_parts(needed: Estimate) -> str:
    parts = sorted(needed.device.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {gib(size)}" for name, size in parts)


def _way_out(job: Job, room: Room, configs: Sequence[Path]) -> str:
    """Name the least change that would fit."""
    precisions = [_precision(path) for path in configs]

    def fits(**changes: Any) -> bool:
        changed = dataclasses.replace(job, **changes)
        return any(_fits(estimate(changed, precision), room) for precision in precisions)

    if fits(recomputes=True):
        return "--gradient_checkpointing"
    rows = job.rows
    while rows > 1:
        rows = -(-rows // 2)
        if fits(rows=rows):
            return f"--gradient_accumulation_steps {-(-job.rows // rows)} times what it is: {rows} rows would fit"
    if fits(rows=1, recomputes=True, teacher_is_split=True):
        return "--teacher_engine zero3, --gradient_checkpointing and more accumulation steps"
    return "more ranks, shorter sequences (--max_seq_length), a smaller teacher or student, or larger GPUs"
