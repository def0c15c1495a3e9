"""Which versions are installed and needed; the package may be installed, or be a checkout on the path."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

OWN_NAME = "tinybert-ds"
PROJECT_FILE = Path(__file__).resolve().parents[1] / "pyproject.toml"

NEEDED_BY_RANKS = ("torch", "transformers", "deepspeed")
"""Packages whose insides are relied on: an older one fails in the middle of a step."""


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, None where there is none; our own is the checkout's without one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return str(_project()["version"]) if name == OWN_NAME and PROJECT_FILE.is_file() else None


def requirements() -> list[Requirement]:
    """Return what the package needs, extras left out; of a checkout that is not installed what pyproject.toml says."""
    try:
        lines: Sequence[str] = requires(OWN_NAME) or ()
    except PackageNotFoundError:
        lines = _project()["dependencies"] if PROJECT_FILE.is_file() else ()
    parsed = [Requirement(line) for line in lines]
    return [requirement for requirement in parsed if "extra" not in str(requirement.marker or "")]


def version_problems(
    needed: Sequence[Requirement], found: Callable[[str], str | None] = installed_version
) -> list[str]:
    """Return a sentence for each of `NEEDED_BY_RANKS` that is missing or older than needed."""
    problems = []
    for requirement in needed:
        if requirement.name not in NEEDED_BY_RANKS:
            continue
        installed = found(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            what = "is not installed" if installed is None else f"is {installed}"
            problems.append(
                f"{requirement.name} {what}; needed is {requirement.name}{requirement.specifier}: bash "
                f'launchers/install.sh, or pip install "{requirement.name}{requirement.specifier}"'
            )
    return problems


def _project() -> dict[str, Any]:
    with PROJECT_FILE.open("rb") as file:
        return dict(tomllib.load(file)["project"])
