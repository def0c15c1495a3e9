from __future__ import annotations

import pytest

from tests.support.corpora import random_documents, write_corpus
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import read_manifest
from tinybert_ds.data.verification import Verification
from tinybert_ds.errors import DataError


@pytest.fixture
def directory(tmp_path):
    return write_corpus(tmp_path, random_documents(40), documents_per_shard=10)


def flip_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def finish(checks: Verification) -> None:
    assert checks.progress(within=60).ended
    checks.check()


def test_an_intact_corpus_passes_and_all_of_its_bytes_are_read(directory):
    checks = Verification([directory])
    finish(checks)
    size = sum(path.stat().st_size for path in directory.iterdir() if path.name in read_manifest(directory).files)
    assert checks.progress(within=0) == (size, size, True, None)


@pytest.mark.parametrize("name", ["shard-00002.bin", "shard-00003.idx", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_its_file_named(directory, name):
    flip_bit(directory / name)
    checks = Verification([directory])
    with pytest.raises(DataError, match=f"{name}' is damaged"):
        finish(checks)
    with pytest.raises(DataError, match=f"{name}' is damaged"):
        checks.check()


def test_a_file_that_was_cut_short_is_found(directory):
    content = (directory / "shard-00001.bin").read_bytes()
    (directory / "shard-00001.bin").write_bytes(content[:-2])
    with pytest.raises(DataError, match=rf"shard-00001\.bin.* its {len(content) - 2} bytes .* {len(content)} bytes"):
        finish(Verification([directory]))


def test_a_file_that_is_gone_is_named(directory):
    (directory / "shard-00001.bin").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.bin' cannot be read: No such file"):
        finish(Verification([directory]))


def test_every_corpus_of_a_run_is_checked(directory, tmp_path_factory):
    other = write_corpus(tmp_path_factory.mktemp("other"), random_documents(5))
    flip_bit(other / "shard-00000.idx")
    with pytest.raises(DataError, match=str(other)):
        finish(Verification([directory, other]))


def test_a_run_stops_at_the_next_batch_after_damage_is_found(directory):
    place = {"rank": 0, "world_size": 1, "accumulation": 1}
    checks = Verification([directory])
    finish(checks)
    arguments = {"split": "train", "eval_fraction": 0, "global_batch_size": 4, "max_seq_length": 32, "seed": 1}
    CorpusSource(directory, **arguments, verification=checks).micro_batches(0, 0, **place)
    flip_bit(directory / "shard-00003.bin")
    checks = Verification([directory])
    with pytest.raises(DataError):
        finish(checks)
    source = CorpusSource(directory, **arguments, verification=checks)
    with pytest.raises(DataError, match=r"shard-00003\.bin"):
        source.micro_batches(0, 1, **place)
