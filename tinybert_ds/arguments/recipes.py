"""Recipes: settings of the training commands as YAML, a section for each stage.

A recipe says how to learn and never what or where: models, data and directories stay on the command line, whose flags
win over the recipe. The shipped ones are those of the paper and of CLUE, a file each (sections, and where a task
differs), and one for small students.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tinybert_ds
from tinybert_ds.arguments.option import flags_of
from tinybert_ds.errors import ConfigError, did_you_mean
from tinybert_ds.foreign_text import listed
from tinybert_ds.strict_formats import read_yaml

_RECIPES = Path(tinybert_ds.__file__).parent / "recipes"
PAPER, CLUE, SMALL = (_RECIPES / f"{name}.yaml" for name in ("paper", "clue", "small"))


def shipped_recipes() -> dict[str, dict[str, Any]]:
    """Return the recipes that come with the package, name -> sections."""
    found = {"paper/general": {"general": _read(PAPER)["general"]}, "small": _read(SMALL)}
    for file in (PAPER, CLUE):
        sections = _read(file)
        exceptions = sections.pop("exceptions")
        sections.pop("general", None)
        for task, own in exceptions.items():
            found[f"{file.stem}/{task}"] = {
                stage: {**values, **own.get(stage, {})} for stage, values in sections.items()
            }
    return found


def recipe_values(arguments: Any) -> dict[str, str]:
    """Return what the recipe of a command line says for its stage, flag -> value as written; empty without a recipe.

    Args:
        arguments: A parsed command line; without a `recipe` of its own, or in a stage that takes none, it has none.

    Raises:
        ConfigError: No such recipe, no section for the stage, or settings that the command does not know.
    """
    flags = {flag.name: flag for flag in flags_of(type(arguments))}
    name, section = getattr(arguments, "recipe", None), arguments.stage
    if name is None or not flags["recipe"].concerns(section):
        return {}
    sections = _find(name)
    if section not in sections:
        raise ConfigError(f"--recipe {name} has no section {section}; it has {listed(sections) or 'none'}")
    values = sections[section]
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(f"--recipe {name}, section {section}: must hold `flag: value` lines")
    known = {flag.name for flag in flags.values() if flag.says.in_recipes}
    unknown = sorted(set(values) - known - {flag.says.older for flag in flags.values()})
    if unknown:
        named = listed(flag if flag in flags else f"{flag}{did_you_mean(flag[:80], known)}" for flag in unknown)
        raise ConfigError(
            f"--recipe {name}, section {section}: {named} cannot be set by a recipe; these can: "
            f"{', '.join(sorted(known))}"
        )
    return dict(values)


def _find(name: str) -> dict[str, Any]:
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return _read(Path(name))
    raise ConfigError(
        f"--recipe {name}: no such file, and no shipped recipe of that name{did_you_mean(name, shipped)}; there are "
        f"{', '.join(shipped)}"
    )


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "--recipe")
    if not isinstance(content, dict):
        raise ConfigError(f"--recipe: {path} must hold sections with `flag: value` lines, such as intermediate:")
    return content
