"""Preparing a corpus by several processes, in several attempts, in several steps."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_tools.corpus_directory import WORK_DIRECTORY
from data_tools.corpus_job import CorpusWorker, Job
from data_tools.corpus_processes import run_job
from data_tools.inspect_shards import verify
from data_tools.prepare_corpus import main
from tests.support.models import WORDS, write_tokenizer
from tests.support.runs import run_ranks, start_ranks
from tinybert_ds.data.manifest import MANIFEST_NAME, open_corpus
from tinybert_ds.errors import DataError
from tinybert_ds.shared_work.claims import Claims

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "data_tools" / "pregenerate_training_data.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    return directory


def make_documents(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = [word for word in WORDS if not word.startswith("##")]
    return ["\n".join(" ".join(rng.choices(words, k=8)) for _ in range(rng.randint(1, 6))) for _ in range(count)]


def write_texts(folder: Path, count: int = 120) -> Path:
    """One corpus in every format."""
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(make_documents(count, 0)), encoding="utf-8")
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(make_documents(count, 1)).encode()))
    records = [json.dumps({"text": text}) for text in make_documents(count, 2)]
    (folder / "c.jsonl").write_text("\n".join(records), encoding="utf-8")
    table = pyarrow.table({"text": make_documents(count, 3)})
    pyarrow.parquet.write_table(table, folder / "d.parquet", row_group_size=20)
    for number in range(5):
        (folder / f"e{number}.txt").write_text("\n\n".join(make_documents(3, 4 + number)), encoding="utf-8")
    return folder


def arguments(model: Path, texts: Path, output: Path, *more: str) -> list[str]:
    return ["--train_corpus", str(texts), "--bert_model", str(model), "--output_dir", str(output), *more]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def documents_of(directory: Path) -> list[bytes]:
    found = []
    for shard in open_corpus(directory).shards:
        starts = [shard.document_start(number) for number in range(shard.num_documents + 1)]
        found += [shard.tokens[begin:end].tobytes() for begin, end in pairwise(starts)]
    return found


FLAGS = ("--shard_bytes", "4096", "--dedup", "--min_chars", "60")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> tuple[Path, Path]:
    """The texts, and what one process makes of them."""
    texts = write_texts(tmp_path_factory.mktemp("whole") / "texts")
    main(arguments(model, texts, texts.parent / "out", *FLAGS))
    assert len(open_corpus(texts.parent / "out").shards) > 10
    return texts, texts.parent / "out"


@pytest.mark.slow
def test_workers_write_what_one_process_writes(model, whole, tmp_path):
    main(arguments(model, whole[0], tmp_path / "out", *FLAGS, "--num_workers", "2"))
    assert contents(tmp_path / "out") == contents(whole[1])


@pytest.mark.slow
def test_ranks_write_what_one_process_writes(model, whole, tmp_path):
    run_ranks(
        "prepare_corpus", arguments(model, whole[0], tmp_path / "out", *FLAGS), world_size=2, log=tmp_path / "log"
    )
    assert contents(tmp_path / "out") == contents(whole[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("mpirun").exists(), reason="mpirun is in the extra `mpi`")
def test_processes_of_mpirun_write_what_one_process_writes(model, whole, tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    command = [mpirun, "-n", "2", sys.executable, SCRIPT, *arguments(model, whole[0], tmp_path / "out", *FLAGS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("sentences,") == 1, "only rank 0 reports"
    assert contents(tmp_path / "out") == contents(whole[1])


@pytest.mark.parametrize("seed", range(3))
def test_a_run_stopped_anywhere_goes_on_and_redoes_only_what_is_unfinished(model, whole, tmp_path, monkeypatch, seed):
    """Stopped in place of killed, which costs a process each time; the test behind this one kills."""
    rng = random.Random(seed)
    real_write = os.fsync
    calls = 0

    def stop_sometimes(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if rng.random() < 0.04:
            raise KeyboardInterrupt
        real_write(descriptor)

    monkeypatch.setattr(os, "fsync", stop_sometimes)
    attempts, kept = 0, {}
    while True:
        attempts += 1
        try:
            main(arguments(model, whole[0], tmp_path / "out", *FLAGS))
            break
        except KeyboardInterrupt:
            records = (tmp_path / "out" / WORK_DIRECTORY).glob("shard-*.json")
            finished = {path.stem: path.stat().st_mtime_ns for path in records if path.read_bytes().endswith(b"}\n")}
            assert kept.items() <= finished.items(), "a finished part was done again"
            kept = finished
    assert attempts > 1
    assert contents(tmp_path / "out") == contents(whole[1])


@pytest.mark.slow
def test_a_killed_run_goes_on(model, tmp_path):
    texts = write_texts(tmp_path / "texts", count=1500)
    flags = ("--shard_bytes", "4096")
    main(arguments(model, texts, tmp_path / "good", *flags))
    out = tmp_path / "out"
    processes = start_ranks("prepare_corpus", arguments(model, texts, out, *flags), 2, tmp_path / "log")
    give_up = time.monotonic() + 60
    while len(list(out.glob("shard-*.bin"))) < 10 and time.monotonic() < give_up:
        time.sleep(0.002)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join()
    assert (out / WORK_DIRECTORY).is_dir(), "killed too late to show anything"
    assert not (out / MANIFEST_NAME).exists()
    main(arguments(model, texts, out, *flags))
    assert contents(out) == contents(tmp_path / "good")


def test_a_lost_shard_is_made_again(model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.prepare_corpus.finish_corpus", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(arguments(model, whole[0], tmp_path / "out", *FLAGS))
    monkeypatch.undo()
    victims = sorted((tmp_path / "out").glob("shard-*"))
    victims[0].unlink()
    victims[5].write_bytes(victims[5].read_bytes()[:-1])
    main(arguments(model, whole[0], tmp_path / "out", *FLAGS))
    assert contents(tmp_path / "out") == contents(whole[1])


def test_an_unfinished_corpus_of_other_options_is_refused_and_kept(model, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(CorpusWorker, "work", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(arguments(model, whole[0], tmp_path / "out", *FLAGS))
    monkeypatch.undo()
    before = contents(tmp_path / "out")
    for more in (["--max_chars", "5000"], ["--no_lower_case"], ["--split_sentences"]):
        with pytest.raises(DataError, match="holds an unfinished corpus that differs"):
            main(arguments(model, whole[0], tmp_path / "out", *FLAGS, *more))
    assert contents(tmp_path / "out") == before


def check_that_new_texts_are_read(model, texts, tmp_path) -> None:
    """Change an input; the corpus that was begun in out/ must become what a new one is."""
    (texts / "a.txt").write_text("\n\n".join(make_documents(21, 77)), encoding="utf-8")
    main(arguments(model, texts, tmp_path / "out", *FLAGS))
    main(arguments(model, texts, tmp_path / "good", *FLAGS))
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


def test_an_input_that_changed_in_between_is_read_anew(model, tmp_path, monkeypatch):
    texts = write_texts(tmp_path / "texts", count=20)
    monkeypatch.setattr("data_tools.prepare_corpus.finish_corpus", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(arguments(model, texts, tmp_path / "out", *FLAGS))
    monkeypatch.undo()
    check_that_new_texts_are_read(model, texts, tmp_path)


def test_an_input_that_changes_or_goes_while_it_is_read_gives_no_corpus(model, tmp_path, monkeypatch):
    texts = write_texts(tmp_path / "texts", count=20)

    def run_job_and_write(*given: Any) -> None:
        run_job(*given)
        with (texts / "a.txt").open("a", encoding="utf-8") as handle:
            handle.write("\n\nthe end\n")

    monkeypatch.setattr("data_tools.prepare_corpus.run_job", run_job_and_write)
    with pytest.raises(DataError, match=r"changed while it was read .*a\.txt"):
        main(arguments(model, texts, tmp_path / "out", *FLAGS))
    monkeypatch.setattr("data_tools.prepare_corpus.run_job", lambda *_: (texts / "a.txt").unlink())
    with pytest.raises(DataError, match=r"a\.txt' is not there any more"):
        main(arguments(model, texts, tmp_path / "out", *FLAGS))
    monkeypatch.undo()
    check_that_new_texts_are_read(model, texts, tmp_path)


def test_duplicates_and_short_documents_are_left_out_and_reported(model, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    once = make_documents(30, 0)
    (texts / "a.txt").write_text("\n\n".join([*once[:20], "the", *once[:3]]), encoding="utf-8")
    (texts / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in once), encoding="utf-8")
    main(arguments(model, texts, tmp_path / "out", "--dedup", "--min_chars", "10", "--shard_bytes", "1000"))
    (texts / "a.txt").write_text("\n\n".join(once), encoding="utf-8")
    (texts / "b.jsonl").unlink()
    main(arguments(model, texts, tmp_path / "plain"))
    assert documents_of(tmp_path / "out") == documents_of(tmp_path / "plain")
    assert open_corpus(tmp_path / "out").manifest.report == {
        "documents": 54,
        "duplicates": 23,
        "shorter than --min_chars": 1,
        "unknown tokens": 0,
    }
    assert "left out of 54 documents; duplicates: 23; shorter than --min_chars: 1" in capsys.readouterr().out


def test_bad_input_is_left_out_counted_and_listed_on_demand(model, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    good = make_documents(50, 0)
    (texts / "a.txt").write_bytes("\n\n".join(good).encode() + b"\nthe \xff city\n")
    (texts / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(good).encode())[:-30])
    (texts / "c.jsonl").write_text('{"text": "the \\ud800 city"}\n{"no text": 1}\n', encoding="utf-8")
    flags = ("--shard_bytes", "1000", "--skip_bad_input")
    with pytest.raises(DataError, match=r"not UTF-8.*--skip_bad_input"):
        main(arguments(model, texts, tmp_path / "refused", *flags[:-1]))
    main(arguments(model, texts, tmp_path / "one", *flags))
    report = open_corpus(tmp_path / "one").manifest.report
    assert report == {
        "lines that are not UTF-8": 1,
        "records without text": 1,
        "unknown tokens": 0,
        "unpaired surrogates that became U+FFFD": 1,
        "unreadable inputs": 1,
    }
    listed = (tmp_path / "one" / "skipped-00000.txt").read_text(encoding="utf-8").splitlines()
    assert [line.count(name) for line, name in zip(listed, ["a.txt", "b.txt.gz", "c.jsonl"], strict=True)] == [1, 1, 1]
    assert "lines that are not UTF-8: 1" in capsys.readouterr().out
    main(arguments(model, texts, tmp_path / "two", *flags, "--num_workers", "2"))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_new_files_are_appended_as_shards_and_change_the_fingerprint(model, whole, tmp_path, capsys):
    texts = tmp_path / "texts"
    shutil.copytree(whole[0], texts)
    shutil.copytree(whole[1], tmp_path / "out")
    before, old = contents(tmp_path / "out"), open_corpus(tmp_path / "out").manifest
    more = [*make_documents(30, 0)[:10], *make_documents(20, 99)]  # ten of them are there already
    (texts / "new.txt").write_text("\n\n".join(more), encoding="utf-8")
    with pytest.raises(DataError, match=r"made of other text: .*not new\.txt.*--extend"):
        main(arguments(model, texts, tmp_path / "out", *FLAGS))
    main(arguments(model, texts, tmp_path / "out", *FLAGS, "--extend"))
    after, new = contents(tmp_path / "out"), open_corpus(tmp_path / "out").manifest
    assert {name: after[name] for name in before if name != MANIFEST_NAME} == {
        name: content for name, content in before.items() if name != MANIFEST_NAME
    }
    assert new.fingerprint != old.fingerprint
    assert new.shards[: len(old.shards)] == old.shards
    assert list(new.inputs) == [*old.inputs, "new.txt"]
    assert documents_of(tmp_path / "out")[: old.documents] == documents_of(whole[1])
    shorter = sum(len(text.replace("\n", "")) < 60 for text in more[10:])
    assert new.documents - old.documents == 20 - shorter
    verify(tmp_path / "out", new)
    capsys.readouterr()
    main(arguments(model, texts, tmp_path / "out", *FLAGS, "--extend"))
    main(arguments(model, whole[0], tmp_path / "out", *FLAGS))
    printed = capsys.readouterr().out
    assert printed.count("nothing to do") == 2
    assert printed.count("more than was asked for: new.txt.") == 1
    assert contents(tmp_path / "out") == after


def test_an_unfinished_extension_is_kept_and_what_a_finished_one_left_is_removed(model, tmp_path, monkeypatch, capsys):
    texts, out = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    (texts / "a.txt").write_text("\n\n".join(make_documents(20, 0)), encoding="utf-8")
    main(arguments(model, texts, out))
    (texts / "b.txt").write_text("\n\n".join(make_documents(20, 1)), encoding="utf-8")
    monkeypatch.setattr("data_tools.prepare_corpus.finish_corpus", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(arguments(model, texts, out, "--extend"))
    monkeypatch.undo()
    begun = contents(out)
    capsys.readouterr()
    main(arguments(model, texts / "a.txt", out))
    assert "an extension of it was begun and is left alone" in capsys.readouterr().out
    assert contents(out) == begun
    shutil.copytree(out / WORK_DIRECTORY, tmp_path / "left over")
    main(arguments(model, texts, out, "--extend"))
    shutil.copytree(tmp_path / "left over", out / WORK_DIRECTORY)
    main(arguments(model, texts, out))
    assert not (out / WORK_DIRECTORY).exists()


def test_an_error_of_one_process_leaves_the_work_of_another_alone(model, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"the \xff\n")
    with contextlib.ExitStack() as other_process:

        def beside_another(job: Job, *how: Any) -> None:
            other_process.enter_context(Claims(job.work_directory).take("shard-00001-00000"))
            run_job(job, *how)

        monkeypatch.setattr("data_tools.prepare_corpus.run_job", beside_another)
        with pytest.raises(DataError, match="not UTF-8"):
            main(arguments(model, tmp_path / "a.txt", tmp_path / "out"))
        assert (tmp_path / "out" / WORK_DIRECTORY / "shard-00001-00000.json").exists()
    monkeypatch.undo()
    with pytest.raises(DataError, match="not UTF-8"):
        main(arguments(model, tmp_path / "a.txt", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_only_a_finished_corpus_can_be_extended(model, whole, tmp_path):
    with pytest.raises(DataError, match="holds no finished corpus"):
        main(arguments(model, whole[0], tmp_path / "out", "--extend"))


def test_a_dataset_gives_what_its_files_give(model, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(2):
        lines = [json.dumps({"body": text}) for text in make_documents(40, number)]
        (folder / f"train-{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = ["--bert_model", str(model), "--text_field", "body", "--shard_bytes", "2000"]
    main([*common, "--dataset", str(folder), "--output_dir", str(tmp_path / "dataset")])
    main([*common, "--train_corpus", str(folder), "--output_dir", str(tmp_path / "files")])
    assert documents_of(tmp_path / "dataset") == documents_of(tmp_path / "files")
    assert len(open_corpus(tmp_path / "dataset").shards) > 4
    before = contents(tmp_path / "dataset")
    main([*common, "--dataset", str(folder), "--output_dir", str(tmp_path / "dataset")])
    assert contents(tmp_path / "dataset") == before


def test_an_error_in_a_worker_ends_the_command(model, tmp_path):
    texts = write_texts(tmp_path / "texts", count=20)
    (texts / "z.txt").write_bytes(b"the \xff\n")
    with pytest.raises(DataError, match=r"z\.txt' is not UTF-8"):
        main(arguments(model, texts, tmp_path / "out", "--num_workers", "2", "--shard_bytes", "2000"))
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_memory_of_a_worker_does_not_hold_a_document(model, tmp_path):
    """A document of many parts is one shard, and the parts inside it are empty."""
    (tmp_path / "a.txt").write_text("\n".join("the city was good ." for _ in range(3000)), encoding="utf-8")
    main(arguments(model, tmp_path / "a.txt", tmp_path / "out", "--shard_bytes", "1000", "--num_workers", "2"))
    (shard,) = open_corpus(tmp_path / "out").shards
    assert shard.num_documents == 1
    assert np.asarray(shard.lengths).tolist() == [5] * 3000


def test_the_command_exits_with_2_and_no_traceback(model, tmp_path):
    missing = arguments(model, tmp_path / "nowhere.txt", tmp_path / "out")
    log = tmp_path / "log"
    ended = run_ranks("prepare_corpus", missing, log=log)
    assert ended.returncode == 2
    assert ended.output.splitlines()[-1].startswith("error: the text file")
    assert "Traceback" not in ended.output
    assert not (tmp_path / "out").exists()
