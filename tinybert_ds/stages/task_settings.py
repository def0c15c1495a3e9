"""What a model's predictions need to know beside its logits, such as thresholds, kept in its config.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_ds.errors import ModelError
from tinybert_ds.files import write_atomically
from tinybert_ds.foreign_text import shown
from tinybert_ds.strict_formats import parse_json
from tinybert_ds.targets.target import Settings


def read_settings(config: Any, names: Sequence[str], columns: Sequence[int], *, role: str) -> Settings | None:
    """Return the settings that a model's config holds, in the order of the task's outputs; None where one is missing.

    Args:
        columns: The model's output for each output of the task.

    Raises:
        ModelError: A setting that is no list of a number for each output.
    """
    found = {name: getattr(config, name, None) for name in names}
    if any(value is None for value in found.values()):
        return None
    for name, value in found.items():
        if not isinstance(value, list) or len(value) != config.num_labels or not all(map(_is_number, value)):
            raise ModelError(
                f'the {role}\'s config.json says "{name}": {shown(value, 100)}; it is a list of a number for each of '
                f"its {config.num_labels} outputs: correct it, or remove it"
            )
    return {name: np.array(value, dtype=np.float64)[list(columns)] for name, value in found.items()}


def write_settings(directory: str | Path, settings: Settings, columns: Sequence[int]) -> None:
    """Write settings into the config.json of a model directory, in the order of the model's outputs."""
    file = Path(directory) / "config.json"
    content = parse_json(file.read_bytes())
    for name, values in settings.items():
        by_output = dict(zip(columns, values.tolist(), strict=True))
        content[name] = [by_output[output] for output in range(len(columns))]
    write_atomically(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
