"""Which files a command line names, and small ones taken together."""

from __future__ import annotations

import gzip

import pytest

from data_tools.input_files import TextInput, find_inputs
from data_tools.input_groups import Range, SourceReader, group_inputs
from data_tools.text_units import Problems, UnreadableInputError
from tinybert_ds.errors import DataError


def write_files(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"{name}\n", encoding="utf-8")


def names_of(tmp_path, *patterns):
    return [item.name for item in find_inputs([str(tmp_path / pattern) for pattern in patterns])]


def test_inputs_are_taken_in_lexical_order_of_names_below_their_common_directory(tmp_path):
    write_files(tmp_path, "b/1.txt", "a/2.txt", "a.txt")
    assert names_of(tmp_path, "b/1.txt", "a/2.txt", "a.txt") == ["a.txt", "a/2.txt", "b/1.txt"]
    assert names_of(tmp_path, "b/1.txt") == ["1.txt"]


def test_directories_and_patterns_name_all_texts_in_them(tmp_path):
    write_files(tmp_path, "a/1.txt", "a/b/2.jsonl.gz", "a/b/3.parquet", "a/README.md", "a/.hidden.txt", "c.text.zst")
    assert names_of(tmp_path, "a") == ["1.txt", "b/2.jsonl.gz", "b/3.parquet"]
    assert names_of(tmp_path, "a/**/*.jsonl.gz", "*.zst") == ["a/b/2.jsonl.gz", "c.text.zst"]
    assert names_of(tmp_path, "a/?.txt") == ["1.txt"]


def test_everything_wrong_with_the_inputs_is_reported_together(tmp_path):
    write_files(tmp_path, "a.txt", "a.zip", "b.parquet.gz", "empty/none.md")
    patterns = ["missing.txt", "a.zip", "b.parquet.gz", "a.txt", "*.txt", "empty", "*.none"]
    with pytest.raises(DataError) as raised:
        names_of(tmp_path, *patterns)
    expected = ["missing.txt' does not exist", "a.zip' is no text", "b.parquet.gz' is no text", "more than once"]
    for part in [*expected, "empty' holds no file that ends in .txt", "no file matches"]:
        assert part in str(raised.value)


def test_small_files_are_taken_together_and_large_ones_alone(tmp_path):
    for name, size in (("a", 40), ("b", 50), ("c", 20), ("d", 500), ("e", 10), ("f.gz", 20), ("g", 15)):
        (tmp_path / name).write_bytes(b"x" * size)
    inputs = find_inputs([str(tmp_path / "?"), str(tmp_path / "*.gz")])
    inputs.insert(0, TextInput("dataset", None))
    grouped = [[item.name for item in source] for source in group_inputs(inputs, 100)]
    # A compressed file counts as four times its size.
    assert grouped == [["dataset"], ["a", "b"], ["c"], ["d"], ["e", "f.gz"], ["g"]]


def lines_of(reader, problems):
    return [line for unit in reader.read(0, problems) for line in unit.lines]


def test_inputs_taken_together_end_their_documents_and_state_their_ranges(tmp_path):
    (tmp_path / "a").write_text("one\n\ntwo", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n', encoding="utf-8")
    (source,) = group_inputs(find_inputs([str(tmp_path / "a"), str(tmp_path / "b.jsonl")]), 1000)
    reader = SourceReader(source, 4, "text")
    assert lines_of(reader, Problems(False)) == ["one", "", "two", "", "three", "", ""]
    assert reader.ranges == [Range(0, 0, 8), Range(1, 0, 18)]
    assert reader.ended


def test_a_damaged_input_among_others_is_left_out_as_a_whole(tmp_path):
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"two\n\n" * 5000)[:-12])
    (tmp_path / "c.txt").write_text("three\n", encoding="utf-8")
    (source,) = group_inputs(find_inputs([str(tmp_path / name) for name in ("a.txt", "b.gz", "c.txt")]), 1000)
    with pytest.raises(UnreadableInputError, match=r"b\.gz"):
        lines_of(SourceReader(source, 1 << 20, "text"), Problems(False))
    problems = Problems(True)
    reader = SourceReader(source, 1 << 20, "text")
    assert lines_of(reader, problems) == ["one", "", "three", ""]
    assert [item.place for item in reader.ranges] == [0, 2]
    assert problems.counts == {"unreadable inputs": 1}
