"""install.sh with a stand-in for Python, and the versions that it installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}

PYTHON = """#!/usr/bin/env bash
# Answers as an interpreter with pip does, and notes what is installed with which constraints.
while [ $# -gt 0 ]; do
    case "$1" in
        install) echo "$*" >>"$FAKE_LOG" ;;
        --constraint) cat "$2" >>"$FAKE_LOG.constraints" ;;
    esac
    shift
done
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with an empty environment, and commands that stand before the machine's own."""
    for name in ("pyproject.toml", "constraints.txt", "launchers/install.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for folder, name in ((".venv/bin", "python"), ("commands", "python3")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text(PYTHON)
        (tmp_path / folder / name).chmod(0o755)
    return tmp_path


def install(checkout, *, gpu=False, **environment):
    """Run install.sh; return the arguments of each `pip install` and the constraints of all of them."""
    nvidia_smi = checkout / "commands" / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\nexit {0 if gpu else 1}\n")
    nvidia_smi.chmod(0o755)
    log = checkout / "log"
    for old in (log, checkout / "log.constraints"):
        old.unlink(missing_ok=True)
    path = f"{checkout / 'commands'}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in ("UNPINNED", "TORCH_INDEX_URL", "PYTHON")}
    finished = subprocess.run(
        ["bash", "launchers/install.sh", "test"],
        cwd=checkout,
        env={**kept, "PATH": path, "FAKE_LOG": str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    constraints = checkout / "log.constraints"
    return (
        finished,
        log.read_text().splitlines() if log.exists() else [],
        set(constraints.read_text().split()) if constraints.exists() else set(),
    )


def test_every_line_is_one_plain_version_of_one_package():
    assert len(LINES) == len(PINNED) > len(REQUIREMENTS)
    version = r"[0-9][0-9.]*(b[0-9]+|\.post[0-9]+)?"
    for line in LINES:
        assert re.fullmatch(rf"[A-Za-z0-9._-]+=={version}", line), line  # no local version, path or address


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_and_extra_is_pinned_to_a_version_that_the_project_allows(requirement):
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


def test_what_the_dependencies_need_is_pinned_too():
    """Of what is installed here; torch's own needs differ between builds."""
    needed, waiting = set(), [requirement.name for requirement in REQUIREMENTS]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in needed or name == "setuptools":
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # an extra that is not installed
            continue
        needed.add(name)
        for requirement in map(Requirement, requires if name != "torch" else []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    assert len(needed) > 40
    assert needed <= PINNED.keys()


def test_the_pinned_versions_are_installed_by_default(checkout):
    finished, installed, constraints = install(checkout)
    assert finished.returncode == 0, finished.stderr
    assert [re.sub(" --constraint .*", "", line) for line in installed] == [
        f"install --disable-pip-version-check torch=={PINNED['torch']}",
        "install --disable-pip-version-check -e .[test]",
    ]
    assert constraints == set(LINES)
    assert all(" --constraint " in line for line in installed)


def test_unpinned_takes_the_newest_and_the_two_kinds_replace_each_other(checkout):
    assert install(checkout, UNPINNED="1")[1:] == (
        [
            f"install --disable-pip-version-check torch=={PINNED['torch']}",
            "install --disable-pip-version-check -e .[test]",
        ],
        set(),
    )
    assert install(checkout, UNPINNED="1")[1] == []  # done already
    assert install(checkout, UNPINNED="0")[2] == set(LINES)
    assert install(checkout)[1] == []
    (checkout / "constraints.txt").write_text("\n".join(LINES).replace("tqdm==", "tqdm==9"))
    assert len(install(checkout)[1]) == 2
    refused, installed, _ = install(checkout, UNPINNED="yes")
    assert (refused.returncode, installed) == (2, [])
    assert "UNPINNED is 'yes'; it may be 1" in refused.stderr


def test_with_a_gpu_torch_and_triton_are_those_of_the_ordinary_build(checkout):
    _, installed, constraints = install(checkout, gpu=True)
    assert re.sub(" --constraint .*", "", installed[0]).endswith(f" torch>={PINNED['torch']}")
    assert {line.partition("==")[0] for line in set(LINES) - constraints} == {"torch", "triton"}
