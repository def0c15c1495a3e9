"""A student's start, kept in a file, so that a run that goes on does not make it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import xxhash
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.files import write_atomically

logger = logging.getLogger(__name__)

_NAME = "start-{hash}.safetensors"
"""The hash is that of the content: a file that is damaged does not have the name of what is in it."""
_STUDENT, _PROJECTIONS = "student.", "projections."


def keep_start(directory: Path, student: PreTrainedModel, projections: Mapping[str, Tensor]) -> None:
    """Write the weights and projections that a student starts from; call it on one rank.

    Raises:
        OSError: The directory cannot be written.
    """
    tensors = {f"{_STUDENT}{name}": value for name, value in student.state_dict().items()}
    tensors |= {f"{_PROJECTIONS}{name}": value for name, value in projections.items()}
    content = save({name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()})
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / _NAME.format(hash=xxhash.xxh3_64_hexdigest(content)), content)


def holds_starts_alone(directory: Path) -> bool:
    """Whether a directory is there and holds nothing but what `keep_start` writes, whole or not."""
    return directory.is_dir() and all(path.name.startswith(("start-", ".start-")) for path in directory.iterdir())


def find_start(directory: Path) -> Path | None:
    """Return the file that `keep_start` wrote, whole; None where there is none. Damaged ones are told and removed."""
    found = None
    for file in sorted(directory.glob(_NAME.format(hash="*"))):
        if file.name == _NAME.format(hash=xxhash.xxh3_64_hexdigest(file.read_bytes())):
            found = file
        else:
            logger.warning("%s is damaged and is made anew", file)
            file.unlink()
    return found


def take_start(file: Path, student: PreTrainedModel) -> dict[str, Tensor]:
    """Give a student the weights of a file that `find_start` has found; return the projections."""
    tensors = load(file.read_bytes())
    own = {name.removeprefix(_STUDENT): value for name, value in tensors.items() if name.startswith(_STUDENT)}
    student.load_state_dict(own)
    return {name.removeprefix(_PROJECTIONS): value for name, value in tensors.items() if name.startswith(_PROJECTIONS)}
