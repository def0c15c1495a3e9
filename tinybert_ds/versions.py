"""Which versions are installed and needed; the package may be installed, or be a checkout on the path."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
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


def is_importable(name: str) -> bool:
    """Whether a package is there; a folder of its name, such as the `wandb/` that runs leave behind, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def requirements(extra: str | None = None) -> list[Requirement]:
    """Return what the package needs, or what an extra of it adds; of a checkout that is not installed what
    pyproject.toml says."""
    try:
        parsed = [Requirement(line) for line in requires(OWN_NAME) or ()]
    except PackageNotFoundError:
        project = _project() if PROJECT_FILE.is_file() else {"dependencies": (), "optional-dependencies": {}}
        lines = project["dependencies"] if extra is None else project["optional-dependencies"].get(extra, ())
        return [Requirement(line) for line in lines]
    markers = [(requirement, str(requirement.marker or "")) for requirement in parsed]
    if extra is None:
        return [requirement for requirement, marker in markers if "extra" not in marker]
    return [requirement for requirement, marker in markers if f'extra == "{extra}"' in marker]


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
