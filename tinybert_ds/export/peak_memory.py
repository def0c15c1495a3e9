"""What a process needs that loads a model and runs it, and does nothing else.

`python -m tinybert_ds.export.peak_memory FORMAT PATH ROWS.npz THREADS` prints the peak of its resident memory in MiB.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from tinybert_ds.export.runtimes import Feed, Format, open_file

logger = logging.getLogger(__name__)

_CHECKOUT = Path(__file__).parents[2]


def peak_mib(kind: Format | Literal["torch"], path: Path, feed: Feed, threads: int) -> float | None:
    """Return the peak memory of a fresh process that runs a model on some rows.

    Args:
        path: Of a file, or for torch a directory that transformers loads by itself, whose config.json names the class.

    Returns:
        MiB; None where the system does not tell, or where the process fails, which is logged.
    """
    if not Path("/proc/self/status").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        arrays: dict[str, Any] = dict(feed)
        np.savez(rows, **arrays)
        words = [sys.executable, "-m", "tinybert_ds.export.peak_memory", kind, str(path), str(rows), str(threads)]
        paths = os.pathsep.join(part for part in (str(_CHECKOUT), os.environ.get("PYTHONPATH")) if part)
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        logger.warning(
            "the peak memory of %s is not measured: a process of its own that loads and runs it ended with code %d: %s",
            path,
            done.returncode,
            done.stderr[-2000:].strip() or "it said nothing",
        )
        return None
    return float(done.stdout.split()[-1])


def main(words: Sequence[str]) -> None:
    """Run the command."""
    kind, path, rows, threads = words
    with np.load(rows) as found:
        feed = {name: found[name] for name in found.files}
    if kind == "torch":
        _run_torch(path, feed, int(threads))
    else:
        run = open_file(cast(Format, kind), Path(path), int(threads))
        run(feed)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")))


def _run_torch(path: str, feed: Feed, threads: int) -> None:
    import torch  # noqa: PLC0415 - the other formats are measured without it
    import transformers  # noqa: PLC0415

    torch.set_num_threads(threads)
    (name,) = transformers.AutoConfig.from_pretrained(path).architectures
    model = getattr(transformers, name).from_pretrained(path).eval()
    with torch.inference_mode():
        model(**{name: torch.from_numpy(value) for name, value in feed.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
