"""A corpus directory while it is prepared: what is in it, what is being added, and the manifest at the end."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from data_tools.cleaning import save_hashes
from data_tools.corpus_job import SHARD, SURVEY, UNKNOWN, Job, array_path, part_records
from data_tools.input_files import TextInput
from data_tools.input_groups import Source
from tinybert_ds.data.blocks import COUNTS_DIRECTORY
from tinybert_ds.data.indexed import FileRecord, hash_file
from tinybert_ds.data.manifest import (
    MANIFEST_NAME,
    TOKENIZER_NAME,
    Manifest,
    Sampling,
    ShardRecord,
    SourceRange,
    write_manifest,
)
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.data.vocabulary import describe_unknown, judge_unknown
from tinybert_ds.errors import DataError
from tinybert_ds.files import refuse_file, refuse_foreign_files, write_atomically
from tinybert_ds.foreign_text import listed_paths
from tinybert_ds.progress import progress_bar
from tinybert_ds.records import read_record
from tinybert_ds.shared_work.claims import Claims, Record, describe_differences

WORK_DIRECTORY = "unfinished"
IDENTITY_NAME = "identity.json"
EXTENDED = "the corpus to extend"
SKIPPED_NAME = "skipped-{:05d}.txt"
HASHES_NAME = "document-hashes-{:05d}.bin"
_OURS = re.compile(r"(shard-\d{5,}-\d{5,}\.(bin|idx)|document-hashes-\d{5,}\.bin|skipped-\d{5,}\.txt)(\.tmp)?")
_TEMPORARY = re.compile(r"\..*\.tmp")


@dataclass(frozen=True)
class CorpusIdentity:
    """What, besides the inputs, makes a corpus what it is."""

    tokenizer_fingerprint: str
    tokenizer_json: str
    special_ids: SpecialIds
    options: Mapping[str, Any]
    sampling: Sampling


class WorkDirectory:
    """The part of a corpus directory that is gone when the corpus is finished."""

    def __init__(self, corpus: Path) -> None:
        self.path = corpus / WORK_DIRECTORY
        self.claims = Claims(self.path)

    def begin(self, identity: Mapping[str, Any], part_bytes: int) -> int:
        """Make the directory, or go on with one that is there; return the bytes of a part, as they were first begun.

        Raises:
            DataError: it belongs to another corpus.
        """
        wanted = json.loads(json.dumps(identity))
        path = self.path / IDENTITY_NAME
        if not path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"identity": wanted, "part_bytes": part_bytes}, indent=1) + "\n")
        content = _read_identity(path)
        found = content["identity"]
        differences = describe_differences(found, wanted)
        if differences:
            raise DataError(
                f"{str(self.path.parent)!r} holds an unfinished corpus that differs: {differences}. Finish that one "
                f"with its own command, or remove {str(self.path)!r}, or give another --output_dir."
            )
        return content["part_bytes"]

    def hash_inputs(
        self, sources: Sequence[Source], *, skip_bad_input: bool, shown: bool
    ) -> list[list[FileRecord | None]]:
        """Size and hash of each file of each source, shared with other processes; None of unreadable ones and datasets.

        Where a file has changed since the work was begun, what was made of it is forgotten. `shown`: with a bar.

        Raises:
            DataError: a file cannot be read.
        """
        named = {_hashes_name(number): number for number in range(len(sources))}

        def hashes_of(name: str) -> Any:
            return self._hashes(named[name], sources[named[name]])

        def hash_source(name: str) -> Record:
            source, before = sources[named[name]], self.claims.record(name)
            states = _states(source)
            hashes = [_hash_input(item, skip_bad_input) for item in source]
            if before is not None and before["hashes"] != hashes:
                self._forget_results()
            bar.update()
            return {"states": states, "hashes": hashes}

        pending = sum(hashes_of(name) is None for name in named)
        with progress_bar(total=pending, desc="hashing inputs", unit="input", shown=shown) as bar:
            self.claims.share(named, hash_source, record=hashes_of)
        found = [self._hashes(number, source) or [] for number, source in enumerate(sources)]
        return [[None if record is None else FileRecord(*record) for record in hashes] for hashes in found]

    def check_inputs(self, sources: Sequence[Source]) -> None:
        """Raise a `DataError` if a file was changed since it was hashed: shards may hold something else of it."""
        for number, source in enumerate(sources):
            if self._hashes(number, source) is None:
                raise DataError(
                    f"an input was changed while it was read ({listed_paths(item.path for item in source)}). Run the "
                    "same command again when nothing writes to it any more: it begins anew."
                )

    def forget_lost_shards(self, corpus: Path) -> None:
        """Make parts unfinished again whose shards are not there any more."""
        for path in self.path.glob(f"{SHARD}-*.json"):
            record = self.claims.record(path.stem)
            files = (record or {}).get("shard") or {"files": {}}
            for name, (size, _) in files["files"].items():
                if not (corpus / name).is_file() or (corpus / name).stat().st_size != size:
                    path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave nothing behind, unless a part is finished or another process is at work on one."""
        is_begun = any(self.claims.record(path.stem) for path in self.path.glob("s*-*.json"))
        if not is_begun and not self.claims.any_taken():
            self.remove()
            _remove_left_over(self.path.parent, keep=())
            with contextlib.suppress(OSError):  # not empty
                self.path.parent.rmdir()

    def check_exists(self) -> None:
        """Raise a `FileNotFoundError` if another process has finished the corpus and removed this."""
        (self.path / IDENTITY_NAME).stat()

    def is_extension_of(self, fingerprint: str) -> bool:
        """Whether what is there is to become an extension of a finished corpus, and not left over from making it."""
        try:
            content = _read_identity(self.path / IDENTITY_NAME)
        except FileNotFoundError:
            return False
        return content["identity"].get(EXTENDED) == fingerprint

    def remove(self) -> None:
        """Remove it; others may be doing so as well."""
        (self.path / IDENTITY_NAME).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _hashes(self, number: int, source: Source) -> list[list[Any] | None] | None:
        """What was found of a source's files; None if they have not been read yet, or may have changed since."""
        record = self.claims.record(_hashes_name(number))
        return record["hashes"] if record is not None and record["states"] == _states(source) else None

    def _forget_results(self) -> None:
        for kind in (SURVEY, SHARD, "duplicates"):
            for path in self.path.glob(f"{kind}-*"):
                path.unlink(missing_ok=True)


class _Identity(TypedDict):
    identity: dict[str, Any]
    part_bytes: Annotated[int, Field(ge=1)]


_IDENTITY = TypeAdapter(_Identity)


def _read_identity(path: Path) -> _Identity:
    remedy = f"remove {str(path.parent)!r} to begin anew"
    return read_record(path, _IDENTITY, remedy, DataError)


def check_output_directory(directory: Path) -> None:
    """Refuse a directory into which shards must not be written.

    Raises:
        ConfigError: not a directory, or it holds files of something else.
    """
    refuse_file(directory)
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    known = {MANIFEST_NAME, TOKENIZER_NAME, COUNTS_DIRECTORY, WORK_DIRECTORY}
    if (directory / MANIFEST_NAME).is_file() or (directory / WORK_DIRECTORY).is_dir():
        names = [n for n in names if n not in known and not _OURS.fullmatch(n) and not _TEMPORARY.fullmatch(n)]
    refuse_foreign_files(directory, names, "holds files that are not of this corpus")


def finish_corpus(
    job: Job, identity: CorpusIdentity, hashes: Sequence[Sequence[FileRecord | None]], base: Manifest | None
) -> Manifest:
    """Write the tokeniser and the manifest of a corpus all of whose parts are finished; remove what is left over.

    Args:
        hashes: of the files of each of the job's sources.
        base: the manifest of the corpus that the job has extended.

    Raises:
        DataError: there was nothing to write, or hardly any of it is known to the tokeniser.
    """
    work = WorkDirectory(job.directory)
    records = [list(part_records(work.claims, SHARD, number)) for number in range(len(job.sources))]
    shards = [] if base is None else list(base.shards)
    inputs = {} if base is None else dict(base.inputs)
    report = Counter({} if base is None else base.report)
    other_files = {} if base is None else dict(base.other_files)
    listed: list[str] = []
    for source, parts, file_records in zip(job.sources, records, hashes, strict=True):
        names = []
        for item, file_record in zip(source, file_records, strict=True):
            names.append(unused_name(item.name, inputs))
            inputs[names[-1]] = file_record or FileRecord(sum(record["text_bytes"] for _, record in parts), "")
        for _, record in parts:
            report.update(record["counts"])
            listed += record["listed"]
            if record["shard"] is not None:
                shards.append(_shard_record(record, names))
    total_bytes = sum(record["text_bytes"] for parts in records for _, record in parts)
    if not shards:
        work.remove()
        if base is None:
            _remove_left_over(job.directory, keep=())
            job.directory.rmdir()
        raise DataError(
            f"the corpus is empty: the inputs hold {total_bytes} bytes of text, but not one sentence that stays"
            f"{describe_report(report)}. Give text with one sentence a line and a blank line between documents."
        )
    tokens = sum(shard.tokens for shard in shards)
    judge_unknown(report[UNKNOWN], tokens, text="the corpus", allowed=job.allow_unknown)
    other_files.update(_write_other_files(job, work, listed))
    tokenizer_path = job.directory / TOKENIZER_NAME
    write_atomically(tokenizer_path, identity.tokenizer_json)
    manifest = Manifest(
        tokenizer_fingerprint=identity.tokenizer_fingerprint,
        special_ids=identity.special_ids,
        options=identity.options,
        sampling=identity.sampling,
        inputs=inputs,
        shards=tuple(shards),
        tokenizer_file=hash_file(tokenizer_path),
        text_bytes=total_bytes + (0 if base is None else base.text_bytes),
        report=dict(sorted(report.items())),
        other_files=other_files,
    )
    _remove_left_over(job.directory, keep=(*manifest.files, *other_files))
    write_manifest(job.directory, manifest)
    work.remove()
    return manifest


def _write_other_files(job: Job, work: WorkDirectory, listed: Sequence[str]) -> dict[str, FileRecord]:
    """What training does not read: the list of bad input and, for later extensions, the hashes of documents."""
    paths = []
    if listed:
        paths.append(job.directory / SKIPPED_NAME.format(job.first_number))
        write_atomically(paths[-1], "".join(f"{line}\n" for line in listed))
    if job.dedup:
        paths.append(job.directory / HASHES_NAME.format(job.first_number))
        surveys = (name for number in range(len(job.sources)) for name, _ in part_records(work.claims, SURVEY, number))
        save_hashes(paths[-1], [array_path(job, name) for name in surveys])
    return {path.name: hash_file(path) for path in paths}


def earlier_hashes(directory: Path, base: Manifest | None) -> tuple[Path, ...]:
    """The files in which an earlier preparation has kept the hashes of its documents."""
    names = () if base is None else base.other_files
    return tuple(directory / name for name in names if name.startswith("document-hashes"))


def unused_name(name: str, taken: Mapping[str, Any]) -> str:
    """The name, or with a number behind it the first one that is not taken."""
    numbered: Iterator[str] = (f"{name}#{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def describe_report(report: Mapping[str, int]) -> str:
    """What was left out, in words, with a semicolon in front."""
    left_out = {reason: count for reason, count in report.items() if reason not in ("documents", UNKNOWN) and count}
    return "; ".join([""] + [f"{reason}: {count:,}" for reason, count in left_out.items()])


def unknown_words(manifest: Manifest) -> str | None:
    """Say how much of a corpus its tokeniser does not know; None where that was not counted."""
    if UNKNOWN not in manifest.report:
        return None
    unknown, tokens = manifest.report[UNKNOWN], manifest.tokens
    warning = judge_unknown(unknown, tokens, text="warning", allowed=True)
    return warning or describe_unknown(unknown, tokens)


def _shard_record(record: Record, names: Sequence[str]) -> ShardRecord:
    shard = record["shard"]
    return ShardRecord(
        name=shard["name"],
        documents=shard["documents"],
        sentences=shard["sentences"],
        tokens=shard["tokens"],
        files={name: FileRecord(*content) for name, content in shard["files"].items()},
        sources=tuple(SourceRange(names[place], begin, end) for place, begin, end in record["ranges"] if end > begin),
    )


def _remove_left_over(directory: Path, keep: Sequence[str]) -> None:
    for path in directory.iterdir():
        is_ours = _OURS.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)
        if is_ours and path.name not in keep:
            path.unlink(missing_ok=True)


def _hashes_name(number: int) -> str:
    return f"input-{number:05d}"


def _states(source: Source) -> list[list[int]]:
    """What shows without reading them that files are still the same."""
    statuses = [item.path.stat() for item in source if item.path is not None]
    return [[status.st_size, status.st_mtime_ns] for status in statuses]


def _hash_input(item: TextInput, skip_bad_input: bool) -> list[Any] | None:
    if item.path is None:
        return None
    try:
        return list(hash_file(item.path))
    except OSError as error:
        if not skip_bad_input:
            raise DataError(f"cannot read {str(item.path)!r}: {error}. Make it readable or leave it out.") from error
        return None
