"""A student's closed-form start on the ranks of a command: the teacher's copy, the files meanwhile, what is shown."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.engine.ranks.exchange import RankExchange
from tinybert_ds.engine.ranks.process_group import World, run_on_main, write_on_main
from tinybert_ds.models.inherit import Inheritance, count_measurements, inherit_all
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.kept import find_start, keep_start, take_start
from tinybert_ds.models.inherit.layers import encoder_layers
from tinybert_ds.models.inherit.sweep import Pupil
from tinybert_ds.progress import progress_bar
from tinybert_ds.types import Batch

logger = logging.getLogger(__name__)

TOKENS_FOR_A_NEURON = 10
"""Of text: with fewer, least squares explain a good part of what they are fitted on by chance."""


def started_once(
    teacher: PreTrainedModel,
    pupils: Sequence[Pupil],
    directories: Sequence[Path],
    text: Callable[[], Sequence[Batch]],
    *,
    dtype: torch.dtype,
    world: World,
) -> list[dict[str, Tensor]]:
    """Give a run's students their start: as an earlier launch has kept it, or made and kept now. Called on all ranks.

    The checkpoints alone would not do: what does not train is no part of them in full precision.

    Args:
        teacher, pupils, dtype: See `start_all_from_teacher`.
        directories: Of each student's checkpoints.
        text: Reads the calibration text, where it is needed.

    Returns:
        The projections of each.

    Raises:
        CheckpointError: A start cannot be kept.
    """
    kept = run_on_main(world, lambda: [find_start(directory) for directory in directories])
    wanted = [number for number, file in enumerate(kept) if file is None]
    projections: list[dict[str, Tensor]] = [{} for _ in pupils]
    if wanted:
        chosen = [pupils[number] for number in wanted]
        made = start_all_from_teacher(teacher, chosen, text(), dtype=dtype, world=world)
        for number, found in zip(wanted, made, strict=True):
            keep = partial(keep_start, directories[number], pupils[number].student, found.projections)
            write_on_main(world, directories[number], keep)
            projections[number] = found.projections
    for number, file in enumerate(kept):
        if file is not None:
            logger.info("the student's start is the one that this run began with: %s", file)
            projections[number] = take_start(file, pupils[number].student)
    return projections


def start_all_from_teacher(
    teacher: PreTrainedModel, pupils: Sequence[Pupil], blocks: Sequence[Batch], *, dtype: torch.dtype, world: World
) -> list[Inheritance]:
    """Give students the weights that their teacher's say they should have, and show what they explain.

    Args:
        teacher: Stays as it is; a copy of it runs, once for all students.
        pupils: The students are on the CPU, before and after.
        blocks: The calibration text, the same on all ranks.
        dtype: What the teacher's copy runs in.
        world: The ranks, all of which call this.
    """
    running = copy.deepcopy(teacher).to(world.device, dtype)
    for pupil in pupils:
        pupil.student.to(world.device)
    total = count_measurements([pupil.layer_map for pupil in pupils]) * len(blocks) // world.size
    what = "the student from its" if len(pupils) == 1 else f"{len(pupils)} students from their"
    with (
        tempfile.TemporaryDirectory(prefix="tinybert_inherit_") as directory,
        progress_bar(total=total, desc=f"starting {what} teacher", unit="block") as bar,
    ):
        exchange = RankExchange(world)
        kept = Blocks(blocks, Path(directory), device=world.device, exchange=exchange, advance=bar.update)
        found = inherit_all(running, pupils, kept)
    for pupil, each in zip(pupils, found, strict=True):
        pupil.student.to("cpu")
        logger.info("the student starts from its teacher, by %d tokens of text", kept.tokens)
        if warning := few_tokens(kept.tokens, encoder_layers(pupil.student)[0].intermediate.out_features):
            logger.warning("%s", warning)
        for line in table(each, pupil.layer_map):
            logger.info("%s", line)
    return found


def few_tokens(tokens: int, neurons: int) -> str | None:
    """Return what is to be said of a text that is short for fits on so many neurons, the widest ones of a layer."""
    if tokens >= TOKENS_FOR_A_NEURON * neurons:
        return None
    return (
        f"{tokens:,} tokens are few for layers of {neurons:,} neurons: what is explained below holds for this text and "
        f"less for others; {TOKENS_FOR_A_NEURON * neurons:,} and more are enough"
    )


def table(found: Inheritance, layer_map: tuple[int, ...]) -> list[str]:
    """Return the lines of a table of what a student's layers explain of the teacher's variance."""
    lines = ["  state  of the teacher  projection  attention  neurons  layer", _row(0, layer_map[0], found.states[0])]
    for number, report in enumerate(found.layers, start=1):
        shares = report.attention, report.neurons, report.state
        lines.append(_row(number, layer_map[number], found.states[number], *shares))
        if report.heads != tuple(range(len(report.heads))):
            lines.append(f"         its heads are the teacher's {', '.join(map(str, report.heads))}")
    if found.head is not None:
        lines.append(f"  head   {100 * found.head:.1f} %")
    if found.own is not None:
        lines.append(f"  of its own states before, {100 * found.own:.1f} % were a linear map of its teacher's")
    return lines


def _row(state: int, of_teacher: int, projection: float, *others: float | None) -> str:
    shares = "".join(
        f"{'own':>{width + 2}}" if share is None else f"{100 * share:>{width}.1f} %"
        for share, width in zip(others, (9, 7, 5), strict=False)
    )
    return f"  {state:<5}  {of_teacher:<14}  {100 * projection:8.1f} %{shares}"
