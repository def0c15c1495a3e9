"""The floors of the house: imports go down only, and the heavy libraries stay in the rooms that own them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "tinybert_ds.errors",
        "tinybert_ds.types",
        "tinybert_ds.files",
        "tinybert_ds.foreign_text",
        "tinybert_ds.strict_formats",
        "tinybert_ds.records",
        "tinybert_ds.hardware",
        "tinybert_ds.rank_environment",
        "tinybert_ds.progress",
        "tinybert_ds.preemption",
        "tinybert_ds.command_line",
        "tinybert_ds.versions",
    ),
    ("tinybert_ds.arguments", "tinybert_ds.launch", "tinybert_ds.losses", "tinybert_ds.shared_work"),
    ("tinybert_ds.models", "tinybert_ds.data", "tinybert_ds.targets"),
    ("data_tools",),
    ("tinybert_ds.objective", "tinybert_ds.vector_objective", "tinybert_ds.engine", "tinybert_ds.export"),
    ("tinybert_ds.stages",),
    ("tinybert_ds.doctor", "tinybert_ds.report", "launchers"),
)
"""From the ground up. A module may import its own floor and those below."""

OWNERS = {
    "deepspeed": ("tinybert_ds.engine.", "tinybert_ds.launch."),
    "triton": ("tinybert_ds.losses.triton_", "tinybert_ds.models.triton_"),
    "mpi4py": ("data_tools.",),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "openvino", "nncf"), ("tinybert_ds.export.",)),
    "data_tools": ("data_tools.",),
    "launchers": ("launchers.",),
    "tests": (),
}
"""Package -> the only modules that may import it."""

NAMED = re.compile(rf"(?:tinybert_ds|{'|'.join(OWNERS)})(?:\.\w+)+")
"""A module of ours, or of a package that has an owner, in a string: for importlib, or for `python -m`."""


def modules() -> dict[str, Path]:
    """Return every module of the product, dotted name -> file."""
    files = [path for folder in ("tinybert_ds", "data_tools", "launchers") for path in (ROOT / folder).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(name: str, source: str) -> Iterator[str]:
    """Yield the modules that a module imports, anywhere in its text; of `from a import b` both `a` and `a.b`.

    Those that it names in a string are among them: importlib imports them, or `python -m` runs them.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import; the project writes the whole name"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
            yield node.value
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            found = node.args[0] if node.args else None
            assert isinstance(found, ast.Constant), f"{name}: imports a module whose name is put together: write it out"
            yield str(found.value)


def called(call: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def floor_of(module: str) -> int | None:
    """Return the floor of a module of ours, None for anything else."""
    found = [
        (len(prefix), floor)
        for floor, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    return max(found)[1] if found else None


def violations(name: str, source: str) -> list[str]:
    """Return what the imports of one module break, one sentence each."""
    own = floor_of(name)
    found = []
    for imported in dict.fromkeys(imports_of(name, source)):
        package = imported.partition(".")[0]
        if package in OWNERS and not name.startswith(OWNERS[package]):
            found.append(f"{name} imports {imported}: only {OWNERS[package] or 'nothing of ours'} may")
        floor = floor_of(imported)
        if floor is not None and own is not None and floor > own:
            found.append(f"{name} (floor {own}) imports {imported} (floor {floor})")
    return found


def test_no_module_imports_what_is_above_it_or_belongs_to_another():
    found = [sentence for name, path in modules().items() for sentence in violations(name, path.read_text("utf-8"))]
    assert found == []


def test_every_module_of_the_library_has_a_floor():
    library = [name for name in modules() if name.startswith("tinybert_ds.")]
    assert len(library) > 20
    assert [name for name in library if floor_of(name) is None] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tinybert_ds.errors", "from tinybert_ds.models import student"),
        ("tinybert_ds.losses.attention", "import tinybert_ds.data.tasks"),
        ("tinybert_ds.models.capture", "from tinybert_ds import engine"),
        ("tinybert_ds.data.tasks", "import importlib\nimportlib.import_module('tinybert_ds.engine.loop')"),
        ("tinybert_ds.models.layer_map", "__import__('deepspeed')"),
        ("tinybert_ds.doctor.machine", "words = ['python', '-m', 'deepspeed.launcher.runner']"),
        ("tinybert_ds.engine.loop", "def f():\n    from tinybert_ds.stages.start import run"),
        ("tinybert_ds.stages.evaluate", "import deepspeed"),
        ("tinybert_ds.models.student", "from deepspeed.ops import adam"),
        ("tinybert_ds.losses.attention", "import triton.language as tl"),
        ("tinybert_ds.engine.ranks.process_group", "from mpi4py import MPI"),
        ("tinybert_ds.stages.start", "from data_tools.text_input import read"),
        ("tinybert_ds.stages.compare", "import launchers.quickstart"),
        ("tinybert_ds.stages.compare", "from tests.support import models"),
        ("data_tools.inspect_shards", "from tinybert_ds.engine import loop"),
    ],
)
def test_a_forbidden_import_is_found(name, source):
    assert violations(name, source) != []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tinybert_ds.engine.loop", "import deepspeed\nfrom tinybert_ds.data import batching"),
        ("tinybert_ds.losses.triton_gram", "import triton"),
        ("data_tools.text_input", "from mpi4py import MPI\nfrom tinybert_ds.data import order\nimport data_tools.x"),
        ("launchers.general_distill", "from tinybert_ds.stages import general_distill\nimport torch"),
        ("tinybert_ds.models.student", "import numpy\nfrom tinybert_ds.models import layer_map"),
    ],
)
def test_an_allowed_import_is_let_through(name, source):
    assert violations(name, source) == []
