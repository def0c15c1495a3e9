"""Settings of all tests. The environment is set before torch or transformers are imported, and children inherit it."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny and several processes share the cores
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # chosen while DeepSpeed is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a hub must fail at once, not when there is no network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked children would warn about it

# A killed build of a torch extension leaves a lock on which the next one waits forever: builds die with the tests.
_EXTENSIONS = tempfile.mkdtemp(prefix="tinybert-ds-extensions-")
os.environ["TORCH_EXTENSIONS_DIR"] = _EXTENSIONS


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tests have built."""
    shutil.rmtree(_EXTENSIONS, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know --slow."""
    parser.addoption("--slow", action="store_true", help="run the tests marked `exhaustive`, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none, and those marked `exhaustive` unless they are asked for."""
    import torch  # noqa: PLC0415 - after the environment is set

    left_out = {} if torch.cuda.is_available() else {"gpu": "needs a CUDA GPU"}
    left_out |= {} if config.getoption("--slow") else {"exhaustive": "runs with --slow"}
    for item in items:
        for name, reason in left_out.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


pytest_plugins = ["tests.support.fixtures"]
