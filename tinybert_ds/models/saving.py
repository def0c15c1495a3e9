"""Saving a student as a plain Hugging Face directory, and the projections beside it."""

from __future__ import annotations

import copy
import filecmp
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tinybert_ds.files import fsync_directory
from tinybert_ds.models import published
from tinybert_ds.models.capture import takes_token_types
from tinybert_ds.models.foreign import foreign_code
from tinybert_ds.models.pretrained import quiet

logger = logging.getLogger(__name__)

PROJECTIONS_FILE = "projections.safetensors"
SCRATCH_PREFIX = ".saving-"
"""Of the directory, inside the one that is written to, in which files wait for their renames."""
_CONFIG_FILE = "config.json"


def save_student(
    model: PreTrainedModel,
    tokenizer: Any,
    directory: str | Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    projections: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model, its tokeniser and its projections as one set of files; call it on one rank.

    A reader never sees a mixed set that loads: files are written elsewhere, synced and renamed. Where more than the
    weights changes, config.json goes first and comes back last; a directory without it does not load.

    Args:
        model: Its config says what is written; the attention function that captures is not part of it.
        directory: Made if absent. Files of other names in it are left alone.
        state_dict: The weights to write in place of the model's own: gathered under ZeRO-3, or the float32 masters.
        projections: See `load_projections`; None leaves those that are there.

    Raises:
        OSError: A directory that cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=directory) as name:
        scratch = Path(name)
        state = dict(model.state_dict() if state_dict is None else state_dict)
        state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        with quiet():
            model.save_pretrained(scratch, state_dict=dict(state))  # which empties the dict it gets
        save_tokenizer(tokenizer, scratch, with_types=takes_token_types(model))
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]  # a head for tokens is told from one for texts by it
        # transformers loads in the dtype that the config states, so it must be that of the weights written
        config.dtype = next(value.dtype for value in state.values() if value.is_floating_point())
        config.save_pretrained(scratch)
        if projections is not None:
            wide = {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in projections.items()}
            save_file(wide, scratch / PROJECTIONS_FILE)
        _give_usual_mode(scratch)
        _replace(scratch, directory)
    if getattr(model.config, "pooler_relu", False):
        logger.warning(
            "%s has a ReLU after its pooler (config.json: pooler_relu), which transformers does not know: load it with "
            "this package, or its predictions differ",
            directory,
        )


def copy_student(source: str | Path, directory: str | Path, *, leave_out: Collection[str] = ()) -> None:
    """Write what `save_student` wrote to `source` to another directory, in the same way; call it on one rank.

    Folders, hidden files and the names of `leave_out` stay behind.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=directory) as name:
        files = (path for path in Path(source).iterdir() if path.is_file() and not path.name.startswith("."))
        for file in (path for path in files if path.name not in leave_out):
            shutil.copyfile(file, Path(name) / file.name)
        _replace(Path(name), directory)


def load_projections(directory: str | Path) -> dict[str, Tensor] | None:
    """Read the projections that a previous stage, or a published TinyBERT, left beside its model.

    Returns:
        "N.weight" (H_teacher, H_student) and "N.bias" (H_teacher,) in float32, N the student state; only N = 0 where
        all states share one. None where there is none.

    Raises:
        ModelError: A file that cannot be read.
    """
    file = Path(directory) / PROJECTIONS_FILE
    if file.is_file():
        with foreign_code(f"{file} cannot be read", "remove it to start with new projections"):
            return load_file(file)
    weights = Path(directory) / published.WEIGHTS_FILE
    return published.published_projections(published.read_bin(weights)) if weights.is_file() else None


def save_tokenizer(tokenizer: Any, directory: Path, *, with_types: bool) -> None:
    """Write a tokeniser that returns what its model takes: a RoBERTa has no embedding for token type 1."""
    names = list(tokenizer.model_input_names)
    if not with_types:
        names = [name for name in names if name != "token_type_ids"]
    if names != list(tokenizer.model_input_names):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_input_names = names
        tokenizer.init_kwargs["model_input_names"] = names
    tokenizer.save_pretrained(directory)


def _give_usual_mode(directory: Path) -> None:
    """Let the files of a directory have the mode that any new file gets here; safetensors lets the owner alone read."""
    probe = directory / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in directory.iterdir():
        file.chmod(mode)


def _replace(source: Path, directory: Path) -> None:
    """Move the files of `source` over those of `directory`, so that no mixed set with a config.json is ever there."""
    names = sorted(file.name for file in source.iterdir())
    _, differing, missing = filecmp.cmpfiles(source, directory, names, shallow=False)
    changed = [source / name for name in sorted(differing + missing)]
    for file in changed:
        _sync(file)
    if len(changed) > 1:
        (directory / _CONFIG_FILE).unlink(missing_ok=True)
        if not any(file.name == _CONFIG_FILE for file in changed) and (source / _CONFIG_FILE).is_file():
            changed.append(source / _CONFIG_FILE)
        fsync_directory(directory)
    for file in sorted(changed, key=lambda file: file.name == _CONFIG_FILE):
        os.replace(file, directory / file.name)
    fsync_directory(directory)


def _sync(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
