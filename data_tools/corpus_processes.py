"""The processes that share a job, as far as this command has started them, and the bar that shows how far all are."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.synchronize import Event

from data_tools.corpus_job import SHARD, SURVEY, CorpusWorker, Job
from data_tools.orphans import end_with_parent
from data_tools.ranks import Ranks
from tinybert_ds.errors import DataError
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.claims import Claims

_LOOK_SECONDS = 0.5


def run_job(job: Job, ranks: Ranks, num_workers: int) -> None:
    """Do a job in this process, or in `num_workers` others, together with the other ranks.

    Raises:
        DataError: an input is unusable, or a worker was killed.
        FileNotFoundError: other ranks have finished everything.
    """
    with closing(_Bar(job, shown=ranks.rank == 0)) as bar:
        try:
            if num_workers == 1:
                CorpusWorker(job, ranks.rank / ranks.size, bar.look).work()
            else:
                _run_workers(job, ranks, num_workers, bar)
        except DataError as error:
            if ranks.rank > 0:  # which a launcher's other processes need not meet, and nobody else would tell
                print(f"error in rank {ranks.rank}: {error}", file=sys.stderr, flush=True)
            raise
        bar.look(now=True)


def _run_workers(job: Job, ranks: Ranks, num_workers: int, bar: _Bar) -> None:
    # Spawned, not forked: a fork of a process with threads may hang.
    context = get_context("spawn")
    stop = context.Event()
    places = [(ranks.rank + worker / num_workers) / ranks.size for worker in range(num_workers)]
    with ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(stop,)) as pool:
        pending = {pool.submit(_work, job, place) for place in places}
        try:
            while pending:
                done, pending = wait(pending, _LOOK_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                bar.look()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process ended by itself; was it killed for memory? What is finished stays: run the same "
                "command again, with fewer --num_workers."
            ) from error
        finally:
            stop.set()


class _Bar:
    """Text bytes of the parts that all processes have finished."""

    def __init__(self, job: Job, *, shown: bool) -> None:
        readings = 1 + job.needs_survey
        total = readings * sum(item.text_bytes for source in job.sources for item in source)
        self._bar = progress_bar(
            total=total or None, desc="tokenising", unit="B", unit_scale=True, leave=True, delay=0, shown=shown
        )
        self._claims = Claims(job.work_directory)
        self._seen: set[str] = set()
        self._next_look = 0.0

    def close(self) -> None:
        self._bar.close()

    def look(self, *, now: bool = False) -> None:
        """Count what has been finished since the last look, if that was a while ago."""
        if self._bar.disable or (time.monotonic() < self._next_look and not now):
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for entry in os.listdir(self._claims.directory):
            name = entry.removesuffix(".json")
            if name == entry or name in self._seen or not name.startswith((SURVEY, SHARD)):
                continue
            record = self._claims.record(name)
            if record is not None:
                self._seen.add(name)
                self._bar.update(record["text_bytes"])


# A worker process has no other place for what it keeps; empty in the process that starts workers.
_stop: list[Event] = []


def _start_worker(stop: Event) -> None:
    _stop.append(stop)
    end_with_parent()


def _work(job: Job, place: float) -> None:
    CorpusWorker(job, place, progress=lambda: None, stopped=_stop[0].is_set).work()
