import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PARENT = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from data_tools.orphans import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("{method}"), initializer=end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_whose_parent_was_killed_ends(tmp_path, method):
    (tmp_path / "parent.py").write_text(PARENT.format(method=method))
    with (tmp_path / "out").open("w") as out:  # a pipe would stay open as long as the worker lives
        subprocess.run(
            [sys.executable, tmp_path / "parent.py"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            timeout=120,
            check=False,
        )
    worker = int((tmp_path / "out").read_text())
    deadline = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)
