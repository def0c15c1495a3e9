"""Worker processes that do not outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading

from tinybert_ds.errors import EXIT_FAULT


def end_with_parent() -> None:
    """End this worker as soon as its parent has ended, however it ended: the `initializer` of a pool.

    A pool's workers wait for their next task for ever when the parent was killed, with all that they have loaded.
    """
    threading.Thread(target=_end_with_parent, name="end_with_parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a process that multiprocessing has started"
    parent.join()
    os._exit(EXIT_FAULT)
