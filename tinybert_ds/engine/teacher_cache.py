"""The teacher's logits of all rows of a task, computed once and mapped from then on.

They do not change from epoch to epoch, from start to start, or from student to student. The ranks share the rows; each
part is kept when it is finished, so that a run that was killed goes on; then one puts them together.
N rows, C outputs of the teacher.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.order import span_indices
from tinybert_ds.data.row_outputs import count_parts, part_batches, read_parts, write_part
from tinybert_ds.engine.ranks.process_group import World, gather_objects
from tinybert_ds.engine.teacher import Teacher
from tinybert_ds.errors import ModelError
from tinybert_ds.files import write_atomically
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.claims import Claims, Record
from tinybert_ds.shared_work.derived import map_array, obtain, save_array, writing
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.types import Batch, EncoderOutput, move, unit_outputs

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever the same key gives other bytes than before."""

BATCH_ROWS = {"cpu": 64, "cuda": 512}
STEPS_OF_A_PART = 32
_LOGITS, _RECORD = "logits.npy", "record.json"

Logits = NDArray[np.float32]
"""(N, C), the teacher's outputs in its own order; row i belongs to sample id i. With units, those of row after row."""


def logits_key(
    *,
    teacher: str,
    data: str,
    max_seq_length: int,
    dtype: str,
    types: bool | None,
    padding: tuple[int, int | None],
    rotary: bool = False,
) -> dict[str, Any]:
    """Everything that decides about the logits of all rows, by name.

    Args:
        teacher: Fingerprint of its directory.
        data: Fingerprint of the rows.
        max_seq_length: What rows are cut to.
        dtype: What the teacher runs in.
        types: Whether the teacher is given the rows' token types; None where it has none or all are 0.
        padding: The token that rows are padded with, and the one that the teacher's config names.
        rotary: Whether the teacher's positions are rotations, which half precision leaves in float32.

    Returns:
        What `logits_directory` takes. `types`, `padding` and `rotary` are in it only where they make a difference:
        entries that were written before they were stay those of the others.
    """
    key: dict[str, Any] = {"teacher": teacher, "data": data, "max_seq_length": max_seq_length, "dtype": dtype}
    if types is not None:
        key["token_types"] = types
    if padding[1] is not None and padding[0] != padding[1]:
        key["padding"] = padding[0]
    if rotary and dtype != "torch.float32":
        key["rotary"] = "torch.float32"
    return key


def logits_directory(home: Path, key: Mapping[str, Any]) -> Path:
    """Where the logits of a teacher, data, tokeniser, length and precision are kept."""
    content = json.dumps({"version": FORMAT_VERSION, **key}, sort_keys=True)
    return home / f"teacher-{xxhash.xxh3_64_hexdigest(content.encode())}"


def read_logits(directory: Path, num_units: int) -> Logits | None:
    """Map the logits of a directory after comparing them with their hash; None where they are missing or damaged."""
    try:
        record = parse_json((directory / _RECORD).read_bytes())
        logits = map_array(directory / _LOGITS)
        return logits if record == _record(logits) and len(logits) == num_units else None
    except (OSError, ValueError):  # not there, or not as it was written
        return None


def kept_teacher(
    directory: Path,
    num_units: int,
    live: Callable[[], Teacher],
    batches_of: Callable[[int], BatchSource],
    world: World,
    *,
    offsets: NDArray[np.int64] | None = None,
) -> Teacher:
    """Return a teacher that looks up what is kept in a directory, and is computed first where some rank finds nothing;
    called on all ranks.

    Args:
        num_units, batches_of: See `compute_logits`, also for the errors.
        offsets: See `cached_teacher`.
    """
    logits = read_logits(directory, num_units)
    if any(gather_objects(logits is None)):
        logits = compute_logits(directory, live(), num_units, batches_of, world)
    else:
        logger.info("the teacher's predictions come from %s", directory)
    assert logits is not None
    return cached_teacher(logits, world.device, offsets)


def compute_logits(
    directory: Path, teacher: Teacher, num_units: int, batches_of: Callable[[int], BatchSource], world: World
) -> Logits:
    """Let the teacher look at every row once and keep what it says; called on all ranks.

    The batches are the same for any number of ranks, and so are the bytes that are written. No rank waits in a
    collective for another's work: whoever sees the folder takes parts that nobody else has, other runs included.

    Args:
        num_units: N, or the units of all rows; sample ids are the row numbers 0..N-1.
        batches_of: From a number of rows to all rows in batches of so many, in an order that never changes.

    Raises:
        ConfigError: The directory cannot be written.
        ModelError: Logits that are no finite numbers.
    """
    batch_rows = BATCH_ROWS["cpu" if world.device.type == "cpu" else "cuda"]
    source = batches_of(batch_rows)
    # Parts of other batches are other parts.
    parts = directory.with_name(f"{directory.name}.parts-{batch_rows}")
    paths = {str(n): parts / f"{n}.npy" for n in range(count_parts(source, STEPS_OF_A_PART))}
    logger.info("the teacher's predictions of %s answers are computed once and kept in %s", f"{num_units:,}", directory)

    def is_done() -> bool:
        progress.update(sum(path.is_file() for path in paths.values()) - progress.n)
        return directory.is_dir() and read_logits(directory, num_units) is not None

    def work(name: str) -> Record:
        write_part(paths[name], ask, part_batches(source, int(name), STEPS_OF_A_PART))
        return {}

    def ask(batch: Batch) -> Tensor:
        moved = move(batch, world.device)
        logits = teacher(moved).logits
        assert logits is not None, "this teacher gives no logits"
        return unit_outputs(logits, moved)

    def written(name: str) -> Path | None:
        return paths[name] if paths[name].is_file() else None

    # The folder of parts has gone when another run was faster.
    with writing(parts), progress_bar(total=len(paths), desc="teacher's predictions", unit="part") as progress:
        with suppress(FileNotFoundError):
            parts.mkdir(exist_ok=True)
            Claims(parts).share(paths, work, record=written, stopped=is_done)
        logits = obtain(
            directory,
            partial(read_logits, num_units=num_units),
            lambda target: _put_together(target, paths.values(), num_units),
        )
    shutil.rmtree(parts, ignore_errors=True)
    return logits


def cached_teacher(logits: Logits, device: torch.device, offsets: NDArray[np.int64] | None = None) -> Teacher:
    """Return a teacher that looks its logits up by the sample ids of a batch.

    Args:
        logits: Of all rows. They stay on the disk for a CPU; another device holds them all, a few bytes a row.
        offsets: (N + 1,) where the logits of each row's units begin; None: each row has one.
    """
    table = None if device.type == "cpu" else torch.from_numpy(np.array(logits)).to(device)

    def look_up(batch: Batch) -> EncoderOutput:
        if offsets is None:
            rows = batch.sample_ids.clamp_min(0)  # a filler row counts for nothing, whatever is said of it
        else:
            own = batch.sample_ids[batch.sample_ids >= 0].cpu().numpy()  # and where units are answered it has none
            rows = torch.from_numpy(span_indices(offsets[own], offsets[own + 1] - offsets[own])).to(device)
        found = torch.from_numpy(logits[rows.numpy()]) if table is None else table[rows]
        return EncoderOutput((), (), (), (), found)

    return look_up


def _put_together(target: Path, paths: Iterable[Path], num_units: int) -> None:
    """Write all logits in the order of the rows, and their record."""
    logits = read_parts(paths)
    assert len(logits) == num_units, (len(logits), num_units)
    if not np.isfinite(logits).all():
        raise ModelError(
            "the teacher gives logits that are no finite numbers; take a higher precision with --teacher_dtype, or "
            "another teacher"
        )
    save_array(target / _LOGITS, logits)
    write_atomically(target / _RECORD, json.dumps(_record(logits), sort_keys=True) + "\n")


def _record(logits: Logits) -> dict[str, Any]:
    return {"shape": list(logits.shape), "xxh3": xxhash.xxh3_64_hexdigest(np.ascontiguousarray(logits).data)}
