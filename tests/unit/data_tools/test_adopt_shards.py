"""Shards of other tools, read as they are."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from data_tools import inspect_shards
from tests.support.models import VOCABULARY, write_tokenizer
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import MANIFEST_NAME, open_corpus
from tinybert_ds.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(5, len(VOCABULARY), size=RNG.integers(3, 30)) for _ in range(60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    return directory


def write_shard(directory: Path, name: str, dtype: str, code: int, sequences=SEQUENCES) -> None:
    """Megatron's layout, written by its description: a document of each two sequences."""
    directory.mkdir(exist_ok=True)
    sizes = [len(sequence) for sequence in sequences]
    width = np.dtype(dtype).itemsize
    pointers = [width * sum(sizes[:number]) for number in range(len(sizes))]
    documents = [*range(0, len(sizes), 2), len(sizes)]
    (directory / f"{name}.bin").write_bytes(b"".join(np.asarray(part, f"<{dtype}").tobytes() for part in sequences))
    (directory / f"{name}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(documents))
        + struct.pack(f"<{len(sizes)}i", *sizes)
        + struct.pack(f"<{len(sizes)}q", *pointers)
        + struct.pack(f"<{len(documents)}q", *documents)
    )


def adopt(directory: Path, model: Path, *more: str) -> None:
    inspect_shards.main([str(directory), "--adopt", "--bert_model", str(model), *more])


@pytest.mark.parametrize(
    ("dtype", "code", "flags"),
    [
        ("i2", 3, []),
        ("i4", 4, []),
        ("u2", 6, ["--dtype_codes", "deepspeed"]),
        ("u2", 8, ["--dtype_codes", "megatron"]),
    ],
)
def test_shards_of_each_dtype_can_be_trained_on(model, tmp_path, capsys, dtype, code, flags):
    write_shard(tmp_path / "out", "my_text_document", dtype, code)
    write_shard(tmp_path / "out", "another", dtype, code, SEQUENCES[:10])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    adopt(tmp_path / "out", model, *flags)
    assert "adopted 2 shards" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in before} == before
    corpus = open_corpus(tmp_path / "out")
    assert [shard.name for shard in corpus.shards] == ["another", "my_text_document"]
    assert corpus.shards[1].tokens.tolist() == np.concatenate(SEQUENCES).tolist()
    inspect_shards.main([str(tmp_path / "out"), "--verify"])
    source = CorpusSource(
        tmp_path / "out", split="train", eval_fraction=0.0, global_batch_size=8, max_seq_length=32, seed=1
    )
    assert source.vocab_size == len(VOCABULARY)
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    assert 5 <= int(batch.input_ids.max()) < len(VOCABULARY)


@pytest.mark.parametrize(
    ("code", "flags", "error", "message"),
    [
        (8, [], ConfigError, "code 8, which is uint16 to megatron.*--dtype_codes"),
        (6, [], ConfigError, "code 6, which is uint16 to deepspeed.*--dtype_codes"),
        (8, ["--dtype_codes", "deepspeed"], DataError, "code 8, which is none of .* supported are 3, 4, 6"),
        (6, ["--dtype_codes", "megatron"], DataError, "code 6, which is none of .* supported are 3, 4, 8"),
        (5, [], DataError, "code 5, which is none of"),
    ],
)
def test_codes_that_mean_different_dtypes_must_be_stated(model, tmp_path, code, flags, error, message):
    write_shard(tmp_path / "out", "a", "u2", code)
    with pytest.raises(error, match=message):
        adopt(tmp_path / "out", model, *flags)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def damaged(sequences, place: int, value) -> list[np.ndarray]:
    return [*sequences[:place], np.asarray(value), *sequences[place + 1 :]]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (damaged(SEQUENCES, 3, [5, 30000]), "ids from 5 to 30000, and the vocabulary has ids from 0 to"),
        (damaged(SEQUENCES, 3, [5, -1]), "ids from -1 to"),
        (damaged(SEQUENCES, 7, []), "sequence 7 has no tokens"),
    ],
)
def test_shards_of_another_vocabulary_are_refused(model, tmp_path, sequences, message):
    write_shard(tmp_path / "out", "a", "i2", 3, sequences)
    with pytest.raises(DataError, match=message):
        adopt(tmp_path / "out", model)


def test_indexes_that_do_not_fit_are_refused(model, tmp_path):
    write_shard(tmp_path / "out", "a", "i2", 3)
    index = bytearray((tmp_path / "out" / "a.idx").read_bytes())
    first_pointer = 34 + 4 * len(SEQUENCES)
    for place, message in ((first_pointer + 8, "sequence 1 does not lie"), (first_pointer, "sequence 0 does not lie")):
        changed = bytearray(index)
        changed[place] ^= 2
        (tmp_path / "out" / "a.idx").write_bytes(changed)
        with pytest.raises(DataError, match=message):
            adopt(tmp_path / "out", model)
    (tmp_path / "out" / "a.idx").write_bytes(index[:-8])
    with pytest.raises(DataError, match="is damaged"):
        adopt(tmp_path / "out", model)


def test_nothing_to_adopt_and_a_corpus_of_ours_are_refused(model, tmp_path):
    with pytest.raises(DataError, match=r"holds no \.idx file"):
        adopt(tmp_path, model)
    (tmp_path / MANIFEST_NAME).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="already"):
        adopt(tmp_path, model)


@pytest.mark.parametrize("flags", [["--adopt"], ["--bert_model", "x"], ["--dtype_codes", "megatron"]])
def test_flags_that_belong_together_are_asked_for_together(tmp_path, flags):
    with pytest.raises(ConfigError, match=r" go(es)? (with|together)"):
        inspect_shards.main([str(tmp_path), *flags])
