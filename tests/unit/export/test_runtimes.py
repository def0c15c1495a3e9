"""Whether what writes and runs the formats is installed, under whatever name."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from tinybert_ds.export import runtimes


@pytest.fixture(autouse=True)
def needed(monkeypatch):
    needed = [Requirement("onnxruntime>=1.27"), Requirement("onnx>=1.21"), Requirement("transformers>=5.24")]
    monkeypatch.setattr(runtimes, "requirements", lambda extra: needed)


def test_packages_that_cannot_be_imported_are_missing(monkeypatch):
    monkeypatch.setattr(runtimes, "is_importable", lambda name: name not in ("onnxscript", "nncf"))
    assert runtimes.missing_packages(["onnx"]) == ["onnxscript"]
    assert runtimes.missing_packages(["onnx", "openvino"]) == ["onnxscript", "nncf"]


@pytest.mark.parametrize(("version", "is_old"), [("1.26.3", True), ("1.27.0", False), ("1.32.0.dev1", False)])
def test_a_build_for_gpus_counts_under_the_name_that_it_has_in_the_index(monkeypatch, version, is_old):
    installed = {"onnx": "1.21.0", "onnxscript": "0.1", "onnxruntime-gpu": version}
    monkeypatch.setattr(runtimes, "installed_version", installed.get)
    monkeypatch.setattr(runtimes, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert runtimes.package_version("onnxruntime") == version
    assert runtimes.package_version("openvino") is None
    told = ["onnxruntime is 1.26.3, needed is onnxruntime>=1.27"]
    assert runtimes.old_packages(["onnx"]) == (told if is_old else [])
