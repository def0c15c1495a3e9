from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import xxhash

from data_tools import text_input
from data_tools.text_input import InputReader, find_inputs, hash_inputs
from tinybert_ds.errors import DataError

TEXT = "".join(f"line {number} é\n" for number in range(1000)).encode()


def write(path: Path) -> Path:
    content = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(TEXT)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.xz", "a"])
def test_units_are_whole_lines_and_together_the_whole_text(tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_input, "UNIT_BYTES", 1000)
    units = list(InputReader(write(tmp_path / name)).units())
    assert b"".join(unit.data for unit in units) == TEXT
    assert len(units) == 12  # 11,890 bytes in units of 1,000 and the rest of a line
    assert all(unit.data.endswith(b"\n") for unit in units)
    for unit in units:
        assert TEXT[unit.begin : unit.begin + len(unit.data)] == unit.data
        assert TEXT[: unit.begin].count(b"\n") + 1 == unit.first_line
    assert [unit.ends_input for unit in units] == [False] * 11 + [True]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.xz"])
def test_size_and_hash_of_the_file_are_known_at_the_end(tmp_path, name):
    path = write(tmp_path / name)
    reader = InputReader(path)
    list(reader.units())
    content = path.read_bytes()
    assert reader.record == (len(content), xxhash.xxh3_64_hexdigest(content))
    assert hash_inputs(find_inputs([str(path)])) == {name: reader.record}


def test_an_empty_file_has_no_units(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    assert not list(InputReader(tmp_path / "a.txt").units())


@pytest.mark.parametrize("name", ["a.gz", "a.xz"])
@pytest.mark.parametrize("damage", ["cut off", "other bytes"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = write(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[:-20] if damage == "cut off" else b"no such format" + content)
    with pytest.raises(DataError, match=f"cannot read .*{name}' after"):
        list(InputReader(path).units())


def test_inputs_are_taken_in_lexical_order_of_names_below_their_common_directory(tmp_path):
    for name in ("b/1.txt", "a/2.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    paths = [str(tmp_path / name) for name in ("b/1.txt", "a/2.txt", "a.txt")]
    assert [item.name for item in find_inputs(paths)] == ["a.txt", "a/2.txt", "b/1.txt"]
    assert [item.name for item in find_inputs(paths[:1])] == ["1.txt"]


def test_everything_wrong_with_the_inputs_is_reported_together(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "a.txt").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("missing.txt", "a.parquet", "a.txt", "a.txt", ".")]
    with pytest.raises(DataError) as raised:
        find_inputs(paths)
    for part in ("missing.txt' does not exist", "a.parquet' is no text file", "more than once", "is a directory"):
        assert part in str(raised.value)
