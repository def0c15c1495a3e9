"""Texts of files as rows: every format, several columns, prompts, and what is kept."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.models import write_tokenizer
from tinybert_ds.data.texts import VECTORS, find_texts, load_texts, read_texts
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder, None)


def texts_of(paths, columns=("text",)):
    return [text for block in read_texts(paths, columns) for text in block.texts[0]]


def test_a_plain_file_has_a_text_in_each_line_that_is_not_blank_tabs_and_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b'the "film"\tis good\r\n\n  \nbad , story\n')
    assert texts_of([path]) == ['the "film"\tis good', "bad , story"]
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert texts_of([packed]) == texts_of([path])


def test_tables_of_all_formats_are_read_in_turn(tmp_path):
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tgood\n2\tbad\n")
    (tmp_path / "b.csv").write_text('text,id\n"long, bright",1\n')
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "dull"}) + "\n")
    parquet.write_table(pa.table({"text": ["day", "night"]}), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("river\n")
    paths = find_texts([str(tmp_path / name) for name in ("a.tsv", "b.csv", "c.jsonl", "d.parquet", "e.txt")])
    assert texts_of(paths) == ["good", "bad", "long, bright", "dull", "day", "night", "river"]


def test_each_column_gives_texts_of_its_own(tmp_path):
    (tmp_path / "pairs.tsv").write_text("one\tother\na\tb\nc\td\n")
    assert sorted(texts_of([tmp_path / "pairs.tsv"], ("one", "other"))) == ["a", "b", "c", "d"]


def test_a_pattern_names_files_in_order_and_no_file_twice(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    assert [path.name for path in find_texts([str(tmp_path / "*.txt")])] == ["a.txt", "b.txt"]
    with pytest.raises(DataError, match="twice"):
        find_texts([str(tmp_path / "a.txt"), str(tmp_path / "*.txt")])
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        find_texts([str(tmp_path / "none.txt")])


def test_a_missing_column_is_named_with_its_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "good"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl.*'text'.*body"):
        texts_of([tmp_path / "a.jsonl"])


def rows_of(rows):
    return [rows.tokens[begin:end].tolist() for begin, end in zip(rows.offsets, rows.offsets[1:], strict=False)]


def test_rows_are_the_texts_behind_their_prompt_cut_to_the_length(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("good film\nthe long bright day in the city\n")
    rows = load_texts([path], (), tokenizer, 6, home=tmp_path, prompt="we saw ")
    expected = [tokenizer("we saw good film").input_ids, tokenizer("we saw the long").input_ids]
    assert rows_of(rows) == expected
    assert rows.labels is None
    assert rows_of(load_texts([path], (), tokenizer, 6, home=tmp_path)) != expected


def test_rows_that_were_kept_are_mapped_until_a_file_changes(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("good film\n")
    before = load_texts([path], (), tokenizer, 16, home=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("tinybert_ds.data.texts.read_texts", lambda *_: pytest.fail("it is read again"))
        assert load_texts([path], (), tokenizer, 16, home=tmp_path).fingerprint == before.fingerprint
    path.write_text("bad film\n")
    assert load_texts([path], (), tokenizer, 16, home=tmp_path).fingerprint != before.fingerprint


def test_a_column_of_vectors_is_kept_beside_the_rows(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "v": [1, 2.5]}\n{"text": "bad", "v": [0, -1]}\n')
    parquet.write_table(pa.table({"v": [[3.0, 4.0]], "text": ["day"]}), tmp_path / "b.parquet")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    rows = load_texts(paths, ["text"], tokenizer, 8, home=tmp_path, vector_column="v")
    assert rows.columns[VECTORS].tolist() == [[1, 2.5], [0, -1], [3, 4]]
    assert load_texts(paths, ["text"], tokenizer, 8, home=tmp_path).columns == {}


@pytest.mark.parametrize(
    ("vector", "said"),
    [("[1]", "1 values"), ("[1, null]", "missing"), ('"x"', "'x'"), ("[1, 1e999]", "no finite number")],
)
def test_a_row_without_a_vector_is_named_by_file_line_and_column(tmp_path, tokenizer, vector, said):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good", "v": [1, 2]}}\n{{"text": "bad", "v": {vector}}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2, column 'v'") as refusal:
        load_texts([tmp_path / "a.jsonl"], ["text"], tokenizer, 8, home=tmp_path, vector_column="v")
    assert said in str(refusal.value)


def test_files_whose_vectors_differ_in_width_are_refused(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "v": [1, 2]}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "good", "v": [1, 2, 3]}\n')
    with pytest.raises(DataError, match=r"b\.jsonl, line 1.*3 values; the rows before have 2"):
        load_texts(
            [tmp_path / n for n in ("a.jsonl", "b.jsonl")], ["text"], tokenizer, 8, home=tmp_path, vector_column="v"
        )
