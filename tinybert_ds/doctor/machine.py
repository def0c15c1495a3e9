"""What one host has, as JSON: `python -m tinybert_ds.doctor.machine [PATH ...]`."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.versions import installed_version

PACKAGES = (
    "tinybert-ds",
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "numpy",
    "safetensors",
    "tensorboard",
    "datasets",
    "mpi4py",
)


def facts(paths: Sequence[str] = ()) -> dict[str, Any]:
    """Look at this host.

    Returns:
        JSON types only: versions, processors, memory and disk in bytes, accelerators, precisions, programs.
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: installed_version(name) for name in PACKAGES},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _available_memory(),
        "programs": {name: _program(name) for name in ("deepspeed", "mpirun", "pdsh", "ssh", "g++", "ninja")},
        "mpi4py_loads": _mpi_loads(),
        "paths": {path: _path_facts(Path(path)) for path in paths},
        "accelerator": _accelerator(),
    }


def _program(name: str) -> str | None:
    own = Path(sys.executable).parent
    return shutil.which(name, path=f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    available = sizes.get("MemAvailable")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may have less than its machine
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available or sys.maxsize, max(0, int(text) - used))
    return available


def _mpi_loads() -> bool:
    """Whether `import mpi4py.MPI` works; in a process of its own, because it starts MPI."""
    if importlib.util.find_spec("mpi4py") is None:
        return False
    words = [sys.executable, "-c", "from mpi4py import MPI; MPI.Get_library_version()"]
    return subprocess.run(words, capture_output=True, check=False, timeout=60).returncode == 0


def _path_facts(path: Path) -> dict[str, Any]:
    exists = path.exists()
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    return {
        "exists": exists,
        "free_bytes": shutil.disk_usage(parent).free,
        "writable": os.access(parent, os.W_OK),
    }


def _accelerator() -> dict[str, Any]:
    """Return what torch computes on; "error" where torch itself does not load."""
    try:
        import torch  # noqa: PLC0415 - may be what is amiss
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        return {"error": f"{type(error).__name__}: {error}"}
    from tinybert_ds.hardware import computes_bf16_itself, multiplies_fast  # noqa: PLC0415 - needs torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return {
            "kind": "cuda",
            "names": [device.name for device in devices],
            "memory_bytes": [device.total_memory for device in devices],
            "bf16": computes_bf16_itself(),
            "fp16": True,
        }
    bf16 = multiplies_fast(torch.bfloat16, torch.device("cpu"))
    return {"kind": "cpu", "names": [platform.processor() or platform.machine()], "bf16": bf16, "fp16": False}


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1:])))
