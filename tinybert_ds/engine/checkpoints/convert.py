"""Going on with another number of ranks or another ZeRO stage: checkpoints cut anew.

ZeRO cuts the optimizer's state into one piece for each rank. DeepSpeed's universal format, one file for each parameter,
lies between the two cuts; it is written by rank 0 beside the checkpoints, read by all and removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from deepspeed.checkpoint import ds_to_universal

from tinybert_ds.engine.deepspeed_private import loading_universal, mend_stage3
from tinybert_ds.engine.ranks.process_group import World, barrier, run_on_main
from tinybert_ds.errors import CheckpointError

logger = logging.getLogger(__name__)

_FAMILIES = ({0}, {1, 2}, {3})
"""ZeRO stages whose checkpoints can become one another's."""
TEMPORARY_PREFIX = ".universal-"
"""Of the directory, beside the checkpoints, that holds the universal format of one while it is loaded."""


class Layout(NamedTuple):
    """How a checkpoint is cut into files: what an engine must have in common with it to load it as it is."""

    world_size: int
    zero_stage: int
    dtype: str  # of the weights in the forward pass

    def __str__(self) -> str:
        return f"{self.world_size} rank(s), ZeRO stage {self.zero_stage}, {self.dtype}"


def layout_of(engine: Any, world: World) -> Layout:
    """Return the layout in which an engine writes checkpoints."""
    dtype, _ = engine.get_data_types()
    return Layout(world.size, int(engine.zero_optimization_stage()), str(dtype).removeprefix("torch."))


def must_convert(found: Layout, wanted: Layout, name: str) -> bool:
    """Whether a checkpoint has to be cut anew before an engine can load it.

    Raises:
        CheckpointError: There is no way from one to the other.
    """
    if found == wanted or (found.dtype == wanted.dtype and found.zero_stage == wanted.zero_stage == 0):
        return False  # without ZeRO every rank has all of the state
    together = any({found.zero_stage, wanted.zero_stage} <= family for family in _FAMILIES)
    if found.dtype != wanted.dtype or not together:
        raise CheckpointError(
            f"{name} was written with {found}; this launch has {wanted}. The number of ranks may change, and ZeRO "
            "stage 1 may become 2 and 2 become 1; launch it with the old stage and precision, or start anew in another "
            "--output_dir"
        )
    return True


def load_converted(engine: Any, directory: Path, tag: str, world: World) -> tuple[str | None, dict[str, Any]]:
    """Load a checkpoint of another layout; called on all ranks.

    Returns:
        As `engine.load_checkpoint` does.
    """
    temporary = f"{TEMPORARY_PREFIX}{tag}"
    run_on_main(world, lambda: _to_universal(directory, tag, temporary))
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    with loading_universal(engine):
        loaded = engine.load_checkpoint(str(directory), tag=temporary)
    if engine.zero_optimization_stage() == 3:
        mend_stage3(engine, decays)
    barrier()
    if world.is_main:
        shutil.rmtree(directory / temporary)
    return loaded


def _to_universal(directory: Path, tag: str, temporary: str) -> None:
    shutil.rmtree(directory / temporary, ignore_errors=True)
    arguments = Namespace(
        input_folder=str(directory / tag),
        output_folder=str(directory / temporary),
        num_extract_workers=1,  # more would be processes of their own, forked from one that has threads
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    (directory / "latest_universal").unlink()  # nothing reads it: tags are given by name
