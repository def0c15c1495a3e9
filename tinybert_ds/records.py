"""The files that this program writes for itself, typed when they are read.

Whoever reads one gets values of the stated shapes, or one error that names the file and what is wrong in it. Records
on which training depends without anybody looking at them (a corpus's manifest, a checkpoint's complete.json) carry a
seal, a hash of their own content, because a flipped digit gives another valid record; those of earlier versions have
none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import xxhash
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # what pydantic asks for before Python 3.12

from tinybert_ds.errors import CheckpointError, UserError
from tinybert_ds.strict_formats import parse_json

Value = TypeVar("Value")

SEAL = "seal"
_TOLD = 3  # of the things that are wrong
_LARGEST_STEP = 2**53  # which a float still counts

Count = Annotated[int, Field(ge=0, le=_LARGEST_STEP)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
FileName = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]+$")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@with_config(ConfigDict(extra="allow"))
class _Zero(TypedDict):
    stage: NotRequired[Annotated[int, Field(ge=0, le=3)]]


@with_config(ConfigDict(extra="allow"))
class _DeepSpeed(TypedDict):
    zero_optimization: NotRequired[_Zero]


@with_config(ConfigDict(extra="allow"))
class _Arguments(TypedDict):
    resume: NotRequired[str]


@with_config(ConfigDict(extra="allow"))
class Launch(TypedDict):
    """What a run was started with."""

    arguments: NotRequired[_Arguments]
    deepspeed_config: NotRequired[_DeepSpeed]
    world_size: NotRequired[Annotated[int, Field(ge=1, le=2**31)]]
    from_step: NotRequired[Count]
    time: NotRequired[str]
    host: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    loss_variances: NotRequired[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]]


class Finished(TypedDict):
    """How a run has ended."""

    steps: Count
    results: dict[str, float]


@with_config(ConfigDict(extra="allow"))
class RunRecord(Launch):
    """run.json: whose the directory is, the latest launch at its top, and all launches, the latest one last."""

    identity: dict[str, Any]
    launches: list[Launch]
    finished: NotRequired[Finished | None]


class _Layout(TypedDict):
    world_size: Annotated[int, Field(ge=1, le=2**31)]
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    dtype: str


@with_config(ConfigDict(extra="forbid"))
class CheckpointRecord(TypedDict):
    """complete.json: what belongs to a checkpoint."""

    files: dict[FileName, Count]  # name -> bytes
    xxh3: dict[FileName, Hash]
    layout: _Layout
    best_step: Count | None


def _has_step(line: dict[str, Any]) -> dict[str, Any]:
    step = line.get("step")
    if not isinstance(step, int) or not 0 <= step <= _LARGEST_STEP or not isinstance(line.get("clock", {}), dict):
        raise PydanticCustomError("line", 'a line needs a whole "step" from 0, and a "clock" is an object')
    return line


MetricsLine = Annotated[
    dict[str, int | float | dict[str, _Finite] | None],
    AfterValidator(_has_step),
]
"""A line of metrics.jsonl: "step", figures by name, and for training steps "clock", what the stopwatch read."""


class Stage(TypedDict):
    """A command of a chain and how long it took."""

    name: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    finished: NotRequired[bool]
    command: NotRequired[list[str]]


STAGES = TypeAdapter(list[Stage])
_RUN = TypeAdapter(RunRecord)
_CHECKPOINT = TypeAdapter(CheckpointRecord)
_METRICS = TypeAdapter(MetricsLine)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the hash of its content at its end."""
    return {**content, SEAL: _hash(content)}


def read_record(path: Path, kind: TypeAdapter[Value], remedy: str, error: type[UserError] = CheckpointError) -> Value:
    """Read a JSON file that this program has written.

    Args:
        remedy: What the user can do when it is damaged, a clause.

    Raises:
        UserError: `error`; the file is damaged, or another program's.
        OSError: It cannot be read.
    """
    try:
        return parse_record(path.read_bytes(), kind)
    except ValueError as problem:
        raise error(f"{str(path)!r} is damaged, or not of this program: {problem}; {remedy}") from problem


def parse_record(text: bytes, kind: TypeAdapter[Value]) -> Value:
    """Return the value of a JSON text; raises ValueError, with what is wrong in a clause."""
    content = parse_json(text)
    if isinstance(content, dict) and SEAL in content and content.pop(SEAL) != _hash(content):
        raise ValueError("its content is not what was written (the hash in it is another one)")
    return validate(content, kind)


def validate(content: Any, kind: TypeAdapter[Value]) -> Value:
    """Return what was parsed as a value of its kind; raises ValueError, with what is wrong in a clause."""
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        raise ValueError(_told(error)) from error
    except OverflowError as error:
        raise ValueError("a number in it is too large") from error


def read_run(path: Path) -> RunRecord:
    """Return the content of a run.json; raises as `read_record`."""
    return read_record(path, _RUN, "remove the directory to start anew, or give another one")


def read_checkpoint(path: Path) -> CheckpointRecord:
    """Return the content of a complete.json; raises as `read_record`."""
    return read_record(path, _CHECKPOINT, "remove the checkpoint to go on from an older one")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without a last one that a kill has torn; none where there is no file.

    Raises:
        CheckpointError: A line is damaged.
        OSError: The file cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        try:
            lines.append(parse_record(line, _METRICS))
        except ValueError as problem:
            raise CheckpointError(
                f"{str(path)!r} is damaged in line {number}: {problem}; mend or remove that line, or move the file away"
            ) from problem
    return lines


def _hash(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def _told(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    parts = [f"{'.'.join(str(place)[:100] for place in item['loc']) or 'it'}: {item['msg']}" for item in found[:_TOLD]]
    return "; ".join(parts) + (f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else "")
