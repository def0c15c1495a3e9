"""Versions of an installed package and of a checkout, and what is refused at the start."""

from __future__ import annotations

import subprocess
import sys
from importlib import invalidate_caches
from importlib.metadata import PackageNotFoundError

import pytest
from packaging.requirements import Requirement

from tests.support.runs import ROOT
from tinybert_ds import versions
from tinybert_ds.versions import installed_version, is_importable, requirements, version_problems

NEEDED = [Requirement(line) for line in ("torch>=2.11", "transformers>=5.23", "deepspeed>=0.19.8", "tqdm>=4")]
GOOD = {"torch": "2.11.0+cu130", "transformers": "5.24.0", "deepspeed": "0.19.8"}


@pytest.fixture
def not_installed(monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", nothing)
    monkeypatch.setattr(versions, "requires", nothing)


@pytest.mark.usefixtures("not_installed")
def test_a_checkout_that_is_not_installed_knows_its_version_and_what_it_needs():
    assert installed_version("tinybert-ds") == "0.1.0"
    assert installed_version("torch") is None
    names = {requirement.name for requirement in requirements()}
    assert {"torch", "deepspeed", "transformers", "numpy"} <= names
    assert "pytest" not in names
    assert "onnxruntime" not in names
    assert {"onnx", "onnxruntime", "openvino"} <= {requirement.name for requirement in requirements("export")}


def test_of_an_installed_package_the_metadata_count():
    assert {"torch", "deepspeed", "transformers", "numpy"} <= {requirement.name for requirement in requirements()}
    assert installed_version("torch").startswith("2.")
    needed = {requirement.name: str(requirement.specifier) for requirement in requirements("export")}
    assert set(needed) == {"transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf"}
    assert needed["onnxruntime"].startswith(">=1.")


def test_older_and_missing_packages_are_named_with_what_is_needed_and_what_to_do():
    assert version_problems(NEEDED, GOOD.get) == []
    old = version_problems(NEEDED, {**GOOD, "transformers": "5.17.0"}.get)
    assert len(old) == 1
    assert "transformers is 5.17.0; needed is transformers>=5.23" in old[0]
    assert 'pip install "transformers>=5.23"' in old[0]
    missing = version_problems(NEEDED, {"torch": "2.13.0", "transformers": "6.0"}.get)
    assert len(missing) == 1
    assert "deepspeed is not installed; needed is deepspeed>=0.19.8" in missing[0]


def test_a_rank_with_an_older_package_ends_with_exit_code_2_and_no_traceback():
    code = "from tinybert_ds import versions\nversions.version = lambda name: '0.1'\n"
    code += "from tinybert_ds.stages.entry import prepare\nprepare()"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "torch is 0.1" in found.stderr
    assert "transformers is 0.1" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_folder_of_a_package_s_name_is_no_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_importable("left_by_runs")
    (tmp_path / "left_by_runs").mkdir()
    assert not is_importable("left_by_runs")
    (tmp_path / "left_by_runs" / "__init__.py").touch()
    invalidate_caches()
    assert is_importable("left_by_runs")
