"""The work of preparing a corpus, as tasks that any number of processes share.

First all inputs are hashed; then, where documents may be left out, all parts are looked at and the hashes of documents
compared; then each part becomes a shard. A task depends on the inputs and the options alone, so the bytes written do
not depend on who does it. Imports little, because every worker process imports it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.cleaning import (
    DUPLICATES,
    DocumentPicker,
    Filters,
    Surveyor,
    dropped_documents,
    num_buckets,
    save_duplicates,
    save_survey,
)
from data_tools.input_groups import Source, SourceReader
from data_tools.text_units import Problems, UnreadableInputError
from data_tools.tokenise_text import TextOptions, TextTokeniser
from tinybert_ds.data.indexed import ShardWriter
from tinybert_ds.data.vocabulary import count_unknown, judge_unknown
from tinybert_ds.shared_work.claims import POLL_SECONDS, Claims, Record

SURVEY, SHARD = "survey", "shard"
UNKNOWN = "unknown tokens"
"""The name of their count in records and in a manifest's report."""
JUDGED_TOKENS = 1000
"""A shard of fewer is judged with the whole corpus alone."""

_EMPTY: Record = {"ranges": [], "text_bytes": 0, "counts": {}, "listed": [], "shard": None}

PartTask = Callable[[int, int, SourceReader], Record]


@dataclass(frozen=True)
class Job:
    """All that the tasks of a corpus depend on, and where they are."""

    directory: Path  # of the corpus
    work_directory: Path
    sources: tuple[Source, ...]
    first_number: int  # of the sources in the corpus, which may be extended by these
    part_bytes: int
    text_field: str
    text: TextOptions
    filters: Filters
    dedup: bool
    earlier_hashes: tuple[Path, ...]  # of documents that the corpus has already, where duplicates are left out
    skip_bad_input: bool
    allow_unknown: bool = False  # whether text that the tokeniser mostly does not know is wanted

    @property
    def needs_survey(self) -> bool:
        """Whether documents may be left out."""
        return self.dedup or self.filters != Filters()


class CorpusWorker:
    """One process's share of a job.

    Args:
        place: from 0 to below 1; where in the list of sources this process begins, so that several keep apart.
        progress: called after each part that this process has done.
        stopped: asked before each part; True ends the work early.
    """

    def __init__(
        self, job: Job, place: float, progress: Callable[[], None], stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._job = job
        self._claims = Claims(job.work_directory)
        first = int(place * len(job.sources))
        self._order = [*range(first, len(job.sources)), *range(first)]
        self._progress = progress
        self._stopped = stopped
        self._tokeniser: TextTokeniser | None = None
        self._surveys: dict[str, int] = {}  # names of all parts, in order
        self._duplicates: list[Path] = []

    def work(self) -> None:
        """Do what is left of the job until nothing is, waiting for what others are doing.

        Raises:
            DataError: an input, or the output, is unusable.
            FileNotFoundError: the work directory has gone, because others have finished everything.
        """
        job = self._job
        if job.needs_survey:
            self._do_parts(SURVEY, self._make_survey)
            names = [
                name for number in range(len(job.sources)) for name, _ in part_records(self._claims, SURVEY, number)
            ]
            self._surveys = {name: place for place, name in enumerate(names)}
        if job.dedup:
            self._find_duplicates()
        self._do_parts(SHARD, self._make_shard)

    def _do_parts(self, kind: str, make: PartTask) -> None:
        while not self._stopped():
            before = [is_complete(self._claims, kind, number) for number in self._order]
            if all(before):
                return
            did = [self._do_source(kind, number, make) for number in self._order]
            if not any(did):
                time.sleep(POLL_SECONDS)

    def _do_source(self, kind: str, number: int, make: PartTask) -> bool:
        """Do all parts of a source that nobody else has taken; whether there was one."""
        job, did, source = self._job, False, self._job.sources[number]
        is_exclusive = source[0].is_exclusive
        open_reader = partial(SourceReader, source, job.part_bytes, job.text_field)
        with contextlib.ExitStack() as stack:
            reader: SourceReader | None = None
            for part in itertools.count():
                if self._stopped():
                    break
                record = self._claims.record(part_name(kind, number, part))
                if record is None:
                    if reader is None and not is_exclusive:
                        reader = stack.enter_context(contextlib.closing(open_reader()))
                    if reader is not None and reader.num_parts is not None and part >= reader.num_parts:
                        break
                    with self._claims.take(part_name(kind, number, part)) as claim:
                        if claim is not None:
                            if reader is None:
                                reader = stack.enter_context(contextlib.closing(open_reader()))
                            record = make(number, part, reader)
                            claim.finish(record)
                            self._progress()
                            did = True
                        elif is_exclusive:
                            break
                if record is not None and record["last"]:
                    break
        return did

    def _make_survey(self, number: int, part: int, reader: SourceReader) -> Record:
        surveyor = Surveyor(self._job.filters)
        problems = Problems(self._job.skip_bad_input)
        text_bytes = 0
        try:
            for unit in reader.read(part, problems):
                surveyor.look(unit.lines)
                text_bytes += unit.text_bytes
        except UnreadableInputError as error:
            record = self._given_up(error)
            surveyor = Surveyor(self._job.filters)
        else:
            record = {"last": reader.ended, "text_bytes": text_bytes}
        survey = surveyor.finish()
        save_survey(array_path(self._job, part_name(SURVEY, number, part)), survey)
        return {**record, "counts": dict(survey.counts)}

    def _make_shard(self, number: int, part: int, reader: SourceReader) -> Record:
        job = self._job
        if self._tokeniser is None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker is a core
            self._tokeniser = TextTokeniser(job.text)
        problems = Problems(job.skip_bad_input)
        counts: dict[str, int] = {}
        dropped: frozenset[int] = frozenset()
        if job.needs_survey:
            name = part_name(SURVEY, number, part)
            survey = self._claims.record(name)
            if survey is None or name not in self._surveys:
                return {**_EMPTY, "last": True}  # behind the last part, whose end this process has not seen
            if "unreadable" in survey:
                return self._given_up(UnreadableInputError(survey["unreadable"]))
            dropped, repeated = dropped_documents(array_path(job, name), self._surveys[name], self._duplicates)
            counts = {**survey["counts"], **({"duplicates": repeated} if job.dedup else {})}
        picker = DocumentPicker(dropped)
        writer: ShardWriter | None = None
        text_bytes = unknown = 0
        try:
            for unit in reader.read(part, problems):
                tokenised = self._tokeniser.tokenise(picker.keep(unit.lines))
                text_bytes += unit.text_bytes
                unknown += count_unknown(tokenised.tokens, self._tokeniser.unknown_id)
                if writer is None and len(tokenised.lengths):
                    writer = ShardWriter(
                        job.directory, part_name(SHARD, job.first_number + number, part), job.text.dtype
                    )
                if writer is not None:
                    writer.add_sentences(*tokenised)
            last = reader.ended
            if writer is not None and writer.num_tokens >= JUDGED_TOKENS:
                name = ", ".join(item.name for item in job.sources[number][:3])
                judge_unknown(unknown, writer.num_tokens, text=name, allowed=job.allow_unknown)
            shard = None if writer is None else _finish(writer)
        except UnreadableInputError as error:
            if writer is not None:
                writer.discard()
            return self._given_up(error)
        except BaseException:
            if writer is not None:
                writer.discard()
            raise
        return {
            "last": last,
            "ranges": reader.ranges,
            "text_bytes": text_bytes,
            "counts": {**counts, **problems.counts, UNKNOWN: unknown},
            "listed": problems.listed,
            "shard": shard,
        }

    def _given_up(self, error: UnreadableInputError) -> Record:
        """What is noted of a part that cannot be read; it and all behind it are left out."""
        if not self._job.skip_bad_input:
            raise error
        counts = {"unreadable inputs": 1}
        return {**_EMPTY, "last": True, "counts": counts, "listed": [str(error)], "unreadable": str(error)}

    def _find_duplicates(self) -> None:
        job = self._job
        records = [part_records(self._claims, SURVEY, number) for number in range(len(job.sources))]
        documents = sum(record["counts"].get("documents", 0) for parts in records for _, record in parts)
        buckets = num_buckets(documents)
        names = [f"{DUPLICATES}-{bucket:05d}" for bucket in range(buckets)]
        self._duplicates = [array_path(job, name) for name in names]
        surveys = [array_path(job, name) for name in self._surveys]

        def find(name: str) -> Record:
            bucket = names.index(name)
            path = self._duplicates[bucket]
            return {"duplicates": save_duplicates(path, surveys, job.earlier_hashes, bucket, buckets)}

        self._claims.share(names, find, stopped=self._stopped)


def part_name(kind: str, number: int, part: int) -> str:
    """The name of a task."""
    return f"{kind}-{number:05d}-{part:05d}"


def array_path(job: Job, name: str) -> Path:
    """Where the arrays that belong to a task's record are."""
    return job.work_directory / f"{name}.npz"


def part_records(claims: Claims, kind: str, number: int) -> Iterator[tuple[str, Record]]:
    """Names and records of a source's finished parts, up to the last or the first unfinished one."""
    for part in itertools.count():
        name = part_name(kind, number, part)
        record = claims.record(name)
        if record is None:
            return
        yield name, record
        if record["last"]:
            return


def is_complete(claims: Claims, kind: str, number: int) -> bool:
    """Whether all parts of a source are finished."""
    return any(record["last"] for _, record in part_records(claims, kind, number))


def _finish(writer: ShardWriter) -> dict[str, Any]:
    files = writer.finish()
    counts = {"documents": writer.num_documents, "sentences": writer.num_sentences, "tokens": writer.num_tokens}
    return {"name": writer.name, **counts, "files": files}
