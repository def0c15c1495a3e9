import subprocess
import sys
import textwrap
import time

from tinybert_ds.engine.watch.stall import StallWatch
from tinybert_ds.errors import EXIT_FAULT


def test_a_rank_that_stands_still_says_where_and_leaves(tmp_path):
    code = textwrap.dedent(
        f"""
        import pathlib, time
        from tinybert_ds.engine.watch.stall import StallWatch
        def reading_from_a_dead_disk():
            time.sleep(60)
        with StallWatch(0.5, pathlib.Path({str(tmp_path)!r}), 3) as watch:
            watch.alive("step 12")
            reading_from_a_dead_disk()
        """
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert finished.returncode == EXIT_FAULT
    assert "nothing has moved for 0.5 s (--stall_timeout_seconds) since step 12" in finished.stderr
    assert "reading_from_a_dead_disk" in (tmp_path / "stalls" / "rank-3.txt").read_text()


def test_signs_of_life_keep_a_run_alive_and_the_watch_ends_with_it(tmp_path):
    with StallWatch(0.2, tmp_path, 0) as watch:
        for step in range(4):
            time.sleep(0.1)
            watch.alive(f"step {step}")
    time.sleep(0.3)
    assert not (tmp_path / "stalls").exists()
