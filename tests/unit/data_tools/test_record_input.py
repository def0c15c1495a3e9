"""Records of JSON lines, Parquet and datasets as documents."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_tools import table_input
from data_tools.record_input import JsonLinesReader
from data_tools.table_input import DatasetName, DatasetReader, ParquetReader
from data_tools.text_units import PartReader, Problems, UnreadableInputError
from tinybert_ds.errors import ConfigError, DataError

TEXTS = [f"first {number}\n\n second\r\n" if number % 3 else "one line" for number in range(40)]
LINES = [line for text in TEXTS for line in [*filter(None, map(str.strip, text.split("\n"))), ""]]


def read_all(reader: PartReader, skip: bool = False) -> tuple[list[list[str]], Problems]:
    """The lines of each part, up to the last one."""
    parts, problems = [], Problems(skip)
    while not parts or not reader.ended:
        parts.append([line for unit in reader.read(len(parts), problems) for line in unit.lines])
    return parts, problems


def write_jsonl(path: Path, records: list[object]) -> Path:
    content = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, texts: list[str | None], row_group: int) -> Path:
    table = pyarrow.table({"other": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string())})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_each_json_line_is_a_document_and_blank_lines_inside_are_none(tmp_path, name):
    path = write_jsonl(tmp_path / name, [{"id": 1, "text": text} for text in TEXTS])
    parts, _ = read_all(JsonLinesReader(path, 300, "text"))
    assert len(parts) > 3
    assert list(chain(*parts)) == LINES
    apart = [
        [line for unit in JsonLinesReader(path, 300, "text").read(number, Problems(False)) for line in unit.lines]
        for number in range(len(parts))
    ]
    assert apart == parts


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        ('{"body": "x"}', "no text in 'text'"),
        ('{"text": null}', "no text"),
        ("[1]", "no text"),
        ('{"text": "cut', "not JSON"),
        pytest.param("[" * 200_000, "not JSON", id="brackets without end"),
    ],
)
def test_a_line_without_text_is_an_error_or_counted(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n\n{{"text": "last"}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.jsonl.*{message}.*--skip_bad_input"):
        read_all(JsonLinesReader(path, 1 << 20, "text"))
    parts, problems = read_all(JsonLinesReader(path, 1 << 20, "text"), skip=True)
    assert parts == [["good", "", "last", ""]]
    assert sum(problems.counts.values()) == len(problems.listed) == 1


def test_unpaired_surrogates_become_replacement_characters_and_pairs_stay(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b \\udc00 \\ud83d\\ude00"}\n', encoding="utf-8")
    parts, problems = read_all(JsonLinesReader(path, 1000, "text"))
    assert parts == [["a\ufffdb \ufffd \U0001f600", ""]]
    assert problems.counts == {"unpaired surrogates that became U+FFFD": 2}


@pytest.mark.parametrize("row_group", [1, 7, 100])
def test_parts_of_parquet_are_runs_of_row_groups(tmp_path, row_group):
    path = write_parquet(tmp_path / "a.parquet", TEXTS, row_group)
    parts, _ = read_all(ParquetReader(path, 200, "text"))
    assert list(chain(*parts)) == LINES
    reader = ParquetReader(path, 200, "text")
    assert reader.num_parts == len(parts)
    assert (len(parts) == 1) == (row_group == 100)
    last = [line for unit in reader.read(len(parts) - 1, Problems(False)) for line in unit.lines]
    assert last == parts[-1]
    assert (reader.end, reader.ended) == (40, True)
    assert reader.begin == 40 - parts[-1].count("")


def test_a_row_without_text_a_missing_column_and_a_damaged_file_are_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["x", None, "y"], 2)
    with pytest.raises(DataError, match=r"a\.parquet': row 1 has no text in 'text'"):
        read_all(ParquetReader(path, 1000, "text"))
    assert read_all(ParquetReader(path, 1000, "text"), skip=True)[0] == [["x", "", "y", ""]]
    with pytest.raises(ConfigError, match=r"no column 'body'; it has other, text"):
        ParquetReader(path, 1000, "body")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UnreadableInputError, match=r"a\.parquet"):
        ParquetReader(path, 1000, "text")


@pytest.mark.slow
def test_no_damaged_description_of_a_column_ends_the_process(tmp_path):
    """pyarrow aborts where it reads the sizes of a column whose list of levels has another length than is stated."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", "y"], "n": [[1], [2, 3]]}), path)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    lists_of_numbers = [place for place in range(footer, len(whole)) if whole[place] & 0x0F == 6]  # in Thrift's form
    assert lists_of_numbers
    for number, place in enumerate(lists_of_numbers):
        damaged = bytes([whole[place] + 0x10 & 0xFF])
        (tmp_path / f"{number}.parquet").write_bytes(whole[:place] + damaged + whole[place + 1 :])
    program = """
import sys
from pathlib import Path
from data_tools.table_input import ParquetReader
from tinybert_ds.errors import UserError
for path in sorted(Path(sys.argv[1]).glob("*.parquet")):
    try:
        ParquetReader(path, 1000, "text")
    except UserError:
        print("told")
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "told" in done.stdout


def test_a_row_that_is_not_utf8_is_shown_as_bytes(tmp_path):
    texts = pyarrow.array([b"good", b"caf\xe9", b"last"], pyarrow.binary())
    strings = pyarrow.StringArray.from_buffers(3, *texts.buffers()[1:], texts.buffers()[0])
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet': row 1 has no text in 'text', but b'caf\\xe9'.* UTF-8"):
        read_all(ParquetReader(tmp_path / "a.parquet", 1000, "text"))
    parts, problems = read_all(ParquetReader(tmp_path / "a.parquet", 1000, "text"), skip=True)
    assert parts == [["good", "", "last", ""]]
    assert problems.counts == {"records without text": 1}


def test_a_dataset_is_streamed_piece_by_piece_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(table_input, "_ROWS_AT_ONCE", 6)
    write_jsonl(tmp_path / "train-0.jsonl", [{"text": text} for text in TEXTS[:25]])
    write_jsonl(tmp_path / "train-1.jsonl", [{"text": text} for text in TEXTS[25:]])
    name = DatasetName(str(tmp_path), None, "train", None, 0)
    assert table_input.open_dataset(name).num_shards == 2
    pieces = [read_all(DatasetReader(name._replace(piece=piece), 150, "text"))[0] for piece in (0, 1)]
    assert len(pieces[0]) > 2
    assert list(chain(*pieces[0], *pieces[1])) == LINES
    jumped = [line for unit in DatasetReader(name, 150, "text").read(2, Problems(False)) for line in unit.lines]
    assert jumped == pieces[0][2]
    with pytest.raises(ConfigError, match="no column 'body'"):
        read_all(DatasetReader(name, 150, "body"))


def test_a_dataset_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot open dataset .*nowhere"):
        table_input.open_dataset(DatasetName(str(tmp_path / "nowhere"), None, "train", None, 0))
