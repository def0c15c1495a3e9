import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tinybert_ds.data.table_formats import augmented_file
from tinybert_ds.data.task_files import read_split, read_table, without_tabs
from tinybert_ds.data.task_spec import SplitFile, TaskSpec, TextFormat
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.errors import ConfigError, DataError

PAIRS = TaskSpec(
    name="pairs",
    splits={},
    metrics=("accuracy",),
    official=("accuracy",),
    label_names=("no", "maybe", "yes"),
    label_aliases={"0": "no", "2": "yes"},
)


def read(folder: Path, file: str, content: bytes, *, header: bool = True, read=read_split):
    (folder / file).write_bytes(content)
    spec = replace(PAIRS, splits={"train": SplitFile(file, ("premise", "claim"), "verdict", header)})
    if not header:
        spec = replace(PAIRS, splits={"train": SplitFile(file, ("0", "1"), "2", header)})
    return read(spec, folder, "train")


def test_a_comma_separated_file_is_quoted_as_spreadsheets_do(tmp_path):
    content = (
        '\ufeffverdict,claim,premise\r\nyes,"one, two","says ""so"""\r\n\r\n0,"over\ntwo lines",plain\r\n'.encode()
    )
    examples = read(tmp_path, "train.csv", content)
    assert examples.texts == (['says "so"', "plain"], ["one, two", "over\ntwo lines"])
    assert examples.labels.tolist() == [2, 0]
    assert examples.labels.dtype == np.int64
    assert read(tmp_path, "train.csv", b"a,b,maybe\n", header=False).labels.tolist() == [1]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json"])
def test_json_lines_hold_an_object_a_line(tmp_path, suffix):
    rows = [
        {"premise": "a\tb", "claim": "é", "verdict": 2},
        {"verdict": "maybe", "extra": [1], "claim": "c", "premise": ""},
    ]
    content = "\n\n".join(json.dumps(row) for row in rows).encode()
    examples = read(tmp_path, f"train.{suffix}", content)
    assert examples.texts == (["a\tb", ""], ["é", "c"])
    assert examples.labels.tolist() == [2, 1]


def test_parquet_holds_columns(tmp_path):
    table = pyarrow.table({"claim": ["c", "d"], "verdict": [0, 2], "premise": ["a", "b"], "more": [[1], None]})
    parquet.write_table(table, tmp_path / "source")
    examples = read(tmp_path, "train.parquet", (tmp_path / "source").read_bytes())
    assert examples.texts == (["a", "b"], ["c", "d"])
    assert examples.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("t.csv", b'premise,claim,verdict\na,b,no\n"a,b,no\n', r"t.csv, line 3: not comma-separated"),
        ("t.csv", b'premise,claim,verdict\n"a\nb",c,no\na,b\n', r"t.csv, line 4: 2 fields, but line 1 has 3"),
        ("t.csv", b'premise,claim,verdict\n"a\nb",c,no\na,b,never\n', r"t.csv, line 4, column 'verdict': .* 'never'"),
        ("t.csv", b"premise;claim;verdict\na;b;no\n", r"line 1: no column 'premise', 'claim', 'verdict'"),
        ("t.csv", b"premise,claim,verdict\ncaf\xe9,b,no\n", r"t.csv, line 2: byte \d+ is not UTF-8"),
        (
            "t.jsonl",
            b'{"premise": "a", "claim": "b", "verdict": "no"}\n{"premise": 1,}\n',
            r"line 2: no JSON at character",
        ),
        ("t.jsonl", b'{"premise": "a"\n', r"line 1: no JSON at character 16"),
        ("t.jsonl", b'\n["a"]\n', r"t.jsonl, line 2: a JSON list"),
        ("t.jsonl", b'{"premise": "a", "claim": null, "verdict": 0}\n', r"line 1, column 'claim': no value"),
        ("t.jsonl", b'{"premise": "a", "claim": "b", "verdict": [0]}\n', r"column 'verdict': a list"),
        ("t.jsonl", b'{"premise": NaN, "claim": "b", "verdict": "no"}\n', r"line 1, column 'premise': no value"),
        ("t.jsonl", b'{"premise": "a", "claim": "b", "verdict": 1}\n', r"line 1, column 'verdict': .* no label '1'"),
        ("t.jsonl", b'{"premise": "a"}\n', r"no column 'claim', 'verdict'; found the columns premise"),
        ("t.jsonl", b"\n", "t.jsonl is empty"),
        (
            "t.jsonl",
            b'{"premise": "a", "claim": 1' + b"0" * 5000 + b"}",
            r"line 1: no JSON \(a number of thousands of digits",
        ),
        ("t.jsonl", b"[" * 100_000, r"line 1: no JSON \(brackets within brackets"),
        (
            "t.jsonl",
            b'{"premise": "\\ud83d!", "claim": "b", "verdict": 0}',
            r"'premise': '\\ud83d', half of a surrogate",
        ),
        ("t.parquet", b"PAR1 and no more", r"t.parquet cannot be read as Parquet"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path, file, content, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, file, content)


def test_a_row_of_parquet_is_named_by_its_number(tmp_path):
    table = pyarrow.table({"claim": ["c", None], "verdict": ["no", "yes"], "premise": ["a", "b"]})
    parquet.write_table(table, tmp_path / "source")
    with pytest.raises(DataError, match=r"t.parquet, row 2, column 'claim': no value"):
        read(tmp_path, "t.parquet", (tmp_path / "source").read_bytes())


def test_augmented_rows_are_tab_separated_whatever_the_format_of_the_others(tmp_path):
    names = ("train.tsv", "x.txt", "deep/train.csv", "train.parquet")
    found = [str(augmented_file(name)) for name in names]
    assert found == ["train_aug.tsv", "x_aug.txt", "deep/train_aug.tsv", "train_aug.tsv"]
    table = read(tmp_path, "t.csv", b'premise,claim,verdict\n"a\tb","c\r\nd",no\n', read=read_table)
    assert without_tabs(table, TextFormat()).rows == [(2, ["a b", "c  d", "no"])]
    table = read(tmp_path, "t.tsv", b"premise\tclaim\tverdict\na\rb\tc\tno\n", read=read_table)
    assert without_tabs(table, TextFormat()).rows == [(2, ["a\rb", "c", "no"])]


def test_a_file_that_names_its_columns_has_no_missing_header(tmp_path):
    text = "files: {train: a.jsonl, dev: b.csv}\ntext: t\nlabel: l\nlabels: [a, b]\nmetric: accuracy\n"
    (tmp_path / "task.yaml").write_text(text)
    assert load_task_file(tmp_path / "task.yaml").splits["dev"].header
    (tmp_path / "task.yaml").write_text(text + "header: false\n")
    with pytest.raises(ConfigError, match=r"header: a.jsonl names its columns by itself"):
        load_task_file(tmp_path / "task.yaml")
