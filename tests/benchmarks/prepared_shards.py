"""One run of our preparation of a corpus, in this process; imports no more than the command itself."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from pathlib import Path

from data_tools.prepare_corpus import main as prepare


def prepare_shards(text: Path, model: str, output: Path, workers: int) -> None:
    """Run the command, quietly, as if for the first time."""
    shutil.rmtree(output, ignore_errors=True)
    command = ["--train_corpus", str(text), "--bert_model", model, "--output_dir", str(output)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare([*command, "--num_workers", str(workers)])


def peak_mib(text: Path, model: str, output: Path) -> tuple[float, float]:
    """Run it with one worker; return the peak memory of this process so far, in MiB, and the seconds it took."""
    begin = time.perf_counter()
    prepare_shards(text, model, output, 1)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024, seconds
