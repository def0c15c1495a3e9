"""Recipes: settings of the training commands as YAML files, a section for each stage.

A recipe says how to learn and never what or where: models, data and directories stay on the command line, whose flags
win over the recipe.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tinybert_ds
from tinybert_ds.errors import ConfigError, did_you_mean
from tinybert_ds.foreign_text import listed
from tinybert_ds.strict_formats import read_yaml

RECIPES_DIR = Path(tinybert_ds.__file__).parent / "recipes"

_PLACES = frozenset(
    """output_dir pregenerated_data teacher_model student_model model tokenizer data_dir task_name task_file
    teacher_labels from_scratch continue_train pred_distill do_eval deepspeed local_rank resume recipe""".split()
)


def shipped_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    return tuple(sorted(str(path.relative_to(RECIPES_DIR).with_suffix("")) for path in RECIPES_DIR.rglob("*.yaml")))


def recipe_values(arguments: Any) -> dict[str, str]:
    """Return what the recipe of a command line says for its stage, flag -> value as written; empty without a recipe.

    Args:
        arguments: A parsed command line; without a `recipe` of its own it has none.

    Raises:
        ConfigError: No such recipe, no section for the stage, or settings that the command does not know.
    """
    name = getattr(arguments, "recipe", None)
    if name is None:
        return {}
    path = _find(name)
    sections = _read(path)
    section = arguments.recipe_section
    if section not in sections:
        raise ConfigError(f"--recipe {name} ({path}) has no section {section}; it has {listed(sections) or 'none'}")
    values = sections[section]
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(f"--recipe {name} ({path}), section {section}: must hold `flag: value` lines")
    known = {field.name for field in dataclasses.fields(arguments)} - _PLACES
    unknown = sorted(set(values) - known)
    if unknown:
        named = listed(flag if flag in _PLACES else f"{flag}{did_you_mean(flag[:80], known)}" for flag in unknown)
        raise ConfigError(
            f"--recipe {name} ({path}), section {section}: {named} cannot be set by a recipe; these can: "
            f"{', '.join(sorted(known))}"
        )
    return dict(values)


def recipe_words(values: dict[str, str]) -> list[str]:
    """Return the settings as words of a command line."""
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def _find(name: str) -> Path:
    shipped = RECIPES_DIR / f"{name}.yaml"
    if name in shipped_recipes():
        return shipped
    if Path(name).is_file():
        return Path(name)
    near = did_you_mean(name, shipped_recipes())
    raise ConfigError(
        f"--recipe {name}: no such file, and no shipped recipe of that name{near}; there are "
        f"{', '.join(shipped_recipes())}"
    )


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "--recipe")
    if not isinstance(content, dict):
        raise ConfigError(f"--recipe: {path} must hold sections with `flag: value` lines, such as intermediate:")
    return content
