from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tinybert_ds.data import indexed
from tinybert_ds.data.indexed import Shard, ShardWriter, hash_file, open_shard, token_dtype
from tinybert_ds.errors import DataError


def write(directory: Path, dtype: str = "int16") -> dict:
    """Documents of sentences [[1, 2, 3], [4]] and [[5, 6]], in two calls that cut the first document."""
    writer = ShardWriter(directory, "shard-00000", dtype)
    writer.add_sentences(np.array([1, 2, 3]), np.array([3]), np.array([], dtype=np.int64))
    writer.add_sentences(np.array([4, 5, 6]), np.array([1, 2]), np.array([1, 1, 2]))
    return writer.finish()


@pytest.mark.parametrize(("dtype", "code", "size"), [("int16", 3, 2), ("int32", 4, 4)])
def test_the_bytes_are_those_of_the_format(tmp_path, dtype, code, size):
    write(tmp_path, dtype)
    letter = {2: "h", 4: "i"}[size]
    assert (tmp_path / "shard-00000.bin").read_bytes() == struct.pack(f"<6{letter}", 1, 2, 3, 4, 5, 6)
    assert (tmp_path / "shard-00000.idx").read_bytes() == b"".join(
        [
            b"MMIDIDX\x00\x00",
            struct.pack("<QBQQ", 1, code, 3, 3),
            struct.pack("<3i", 3, 1, 2),
            struct.pack("<3q", 0, 3 * size, 4 * size),
            struct.pack("<3q", 0, 2, 3),
        ]
    )


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_deepspeed_reads_what_we_write(tmp_path, dtype):
    from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset  # noqa: PLC0415

    write(tmp_path, dtype)
    dataset = MMapIndexedDataset(str(tmp_path / "shard-00000"), skip_warmup=True)
    assert [dataset[i].tolist() for i in range(len(dataset))] == [[1, 2, 3], [4], [5, 6]]
    assert dataset.doc_idx.tolist() == [0, 2, 3]
    assert dataset.dtype == np.dtype(dtype)


def test_what_was_written_is_read_back(tmp_path):
    write(tmp_path)
    shard = open_shard(tmp_path, "shard-00000")
    assert shard.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert shard.lengths.tolist() == [3, 1, 2]
    assert shard.offsets.tolist() == [0, 6, 8]
    assert shard.documents.tolist() == [0, 2, 3]
    assert shard.num_documents == 2


def test_offsets_are_right_when_they_are_made_in_several_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(indexed, "_COPY_BYTES", 12)
    lengths = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    writer = ShardWriter(tmp_path, "s", "int32")
    writer.add_sentences(np.arange(lengths.sum()), lengths, np.array([8]))
    writer.finish()
    assert open_shard(tmp_path, "s").offsets.tolist() == (4 * (np.cumsum(lengths) - lengths)).tolist()


def test_the_records_hold_size_and_hash_of_both_files(tmp_path):
    records = write(tmp_path)
    assert sorted(records) == ["shard-00000.bin", "shard-00000.idx"]
    for name, record in records.items():
        content = (tmp_path / name).read_bytes()
        assert record == (len(content), xxhash.xxh3_64_hexdigest(content)) == hash_file(tmp_path / name)


def test_nothing_has_its_final_name_before_it_is_finished(tmp_path):
    writer = ShardWriter(tmp_path, "s", "int16")
    writer.add_sentences(np.array([1]), np.array([1]), np.array([1]))
    assert all(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_ids_up_to_32767_are_int16():
    assert token_dtype(30522) == token_dtype(32768) == np.int16
    assert token_dtype(32769) == np.int32


def test_documents_are_found_by_the_token_at_which_they_begin():
    lengths = np.array([3, 2, 5, 1, 4], dtype=np.int32)
    offsets = (np.cumsum(lengths) - lengths) * 2
    shard = Shard("s", np.zeros(15, dtype=np.int16), lengths, offsets, np.array([0, 2, 3, 5]))
    assert [shard.document_start(document) for document in range(4)] == [0, 5, 10, 15]
    found = [shard.first_document_from(token) for token in (0, 1, 5, 6, 10, 11, 15, 99)]
    assert found == [0, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("name", ["shard-00000.bin", "shard-00000.idx"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_the_wrong_size_is_named(tmp_path, name, change):
    write(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:change] if change < 0 else content + b"\0")
    with pytest.raises(DataError, match=rf"{name}' is damaged: it has {len(content) + change} bytes"):
        open_shard(tmp_path, "shard-00000")


@pytest.mark.parametrize("name", ["shard-00000.bin", "shard-00000.idx"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}' is missing"):
        open_shard(tmp_path, "shard-00000")


def test_another_kind_of_file_another_dtype_and_a_broken_document_index_are_refused(tmp_path):
    write(tmp_path)
    index = tmp_path / "shard-00000.idx"
    good = index.read_bytes()
    for content, message in [
        (b"TNTIDX" + good[6:], "not a version 1 index"),
        (b"", "not a version 1 index"),
        (good[:17] + bytes([8]) + good[18:], "dtype code 8"),
        (good[:-8] + struct.pack("<q", 2), "document index does not span"),
    ]:
        index.write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_shard(tmp_path, "shard-00000")


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_we_read_what_deepspeed_writes(tmp_path, dtype):
    from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import (  # noqa: PLC0415
        MMapIndexedDatasetBuilder,
    )

    builder = MMapIndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.dtype(dtype).type)
    for document in ([[1, 2, 3], [4]], [[5, 6]]):
        for sentence in document:
            builder.add_item_numpy(np.array(sentence))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    shard = open_shard(tmp_path, "theirs")
    assert shard.tokens.dtype == np.dtype(dtype)
    assert shard.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert shard.lengths.tolist() == [3, 1, 2]
    assert shard.documents.tolist() == [0, 2, 3]
    assert [shard.document_start(document) for document in range(3)] == [0, 4, 6]


HEADER, N, D = 34, 3, 3  # bytes of the header; sequences and documents' edges of `write`
LENGTHS, OFFSETS, DOCUMENTS = HEADER, HEADER + 4 * N, HEADER + 12 * N


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (LENGTHS + 4, struct.pack("<i", 0), "sequence 1 has no tokens"),
        (LENGTHS + 4, struct.pack("<i", -1), "sequence 1 has no tokens"),
        (LENGTHS, struct.pack("<2i", 2, 2), "sequence 1 does not lie behind the one before it"),
        (LENGTHS, struct.pack("<i", 2**31 - 1), "sequence 1 does not lie behind"),
        (OFFSETS, struct.pack("<q", 2), "sequence 0 does not lie behind"),
        (OFFSETS + 8, struct.pack("<q", -6), "sequence 1 does not lie behind"),
        (OFFSETS + 16, struct.pack("<q", 2**62), "sequence 2 does not lie behind"),
        (DOCUMENTS + 8, struct.pack("<q", 4), "document 1 ends before it begins"),
        (DOCUMENTS + 8, struct.pack("<q", -1), "document 0 ends before it begins"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_an_index_that_makes_no_sense_is_refused(tmp_path, monkeypatch, place, value, told, at_once):
    monkeypatch.setattr(indexed, "_INDEX_AT_ONCE", at_once)
    write(tmp_path)
    index = tmp_path / "shard-00000.idx"
    content = bytearray(index.read_bytes())
    content[place : place + len(value)] = value
    index.write_bytes(content)
    with pytest.raises(DataError, match=rf"shard-00000\.idx' is damaged: {told}"):
        open_shard(tmp_path, "shard-00000")
