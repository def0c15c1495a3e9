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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is none."""
    import torch  # noqa: PLC0415 - after the environment is set

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


pytest_plugins = ["tests.support.fixtures"]
