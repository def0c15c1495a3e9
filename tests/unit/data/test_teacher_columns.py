"""What a teacher said of each row, read out of the columns of a file."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.support.models import write_tokenizer
from tinybert_ds.data import task_tables
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_tokens import load_rows
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.teacher_columns import COLUMNS, with_teacher
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError

LABELS = "labels: [no, yes]\nmetric: accuracy\n"
SCORES = "target: scores\nmetric: spearman\n"


def task(folder, file, teacher, target=LABELS):
    text = f"files: {{train: {file}, dev: dev.tsv}}\ntext: text\nlabel: label\n{target}teacher: {teacher}\n"
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return with_teacher(load_task_file(folder / "task.yaml"))


def answers(folder, file, content, teacher, target=LABELS):
    (folder / file).write_text(content, encoding="utf-8")
    return read_split(task(folder, file, teacher, target), folder, "train").columns[COLUMNS]


def test_a_column_for_each_label_gives_logits_in_the_order_of_the_task(tmp_path):
    rows = "text,label,a,b\ngood,yes,0.5,1.5\nbad,no,2,-1e-3\n"
    found = answers(tmp_path, "t.csv", rows, "{columns: [a, b]}")
    assert (found.dtype, found.tolist()) == (np.float32, [[0.5, 1.5], [2.0, np.float32(-1e-3)]])
    turned = answers(tmp_path, "t.csv", rows, "{columns: {yes: a, no: b}}")
    assert turned.tolist() == found[:, ::-1].tolist()
    assert answers(tmp_path, "t.csv", rows, "{columns: [a, b], labels: [Yes, no]}").tolist() == turned.tolist()


def test_arrays_come_in_json_lines_parquet_and_as_json_in_text_files(tmp_path):
    values = [[1, 2.25], [-3.5, 0]]
    rows = [{"text": "good", "label": "yes", "t": values[0]}, {"text": "bad", "label": "no", "t": values[1]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    expected = np.float32(values).tolist()
    assert answers(tmp_path, "t.jsonl", lines, "{columns: t}").tolist() == expected
    assert answers(tmp_path, "t.json", json.dumps(rows), "{columns: t}").tolist() == expected
    assert answers(
        tmp_path, "t.tsv", "text\tlabel\tt\ng\tyes\t[1, 2.25]\nb\tno\t[-3.5,0]\n", "{columns: t}"
    ).tolist() == (expected)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = read_split(task(tmp_path, "t.parquet", "{columns: t}"), tmp_path, "train").columns[COLUMNS]
    assert found.tolist() == expected
    nested = json.dumps({"text": "good", "label": "yes", "by": {"t": [1, 2]}}) + "\n"
    assert answers(tmp_path, "t.jsonl", nested, "{columns: by.t}").tolist() == [[1.0, 2.0]]


def test_rows_need_no_labels(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "good", "t": [1, 2]}\n')
    spec = task(tmp_path, "t.jsonl", "{columns: t}")
    with pytest.raises(DataError, match="no column 'label'"):
        read_split(spec, tmp_path, "train")
    spec = replace(spec, splits={"train": replace(spec.splits["train"], may_lack_label=True)})
    examples = read_split(spec, tmp_path, "train")
    assert (examples.labels, examples.columns[COLUMNS].tolist()) == (None, [[1.0, 2.0]])


def test_probabilities_become_logits_that_give_them_back_at_the_temperature_they_were_made_with(tmp_path):
    rows = "text,label,a,b\ngood,yes,0.25,0.75\nbad,no,1,0\nso,no,0.2,0.3\n"
    found = answers(tmp_path, "t.csv", rows, "{columns: [a, b], kind: probabilities}")
    again = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    assert again == pytest.approx(np.array([[0.25, 0.75], [1, 0], [0.4, 0.6]]), abs=1e-6)
    softened = answers(tmp_path, "t.csv", rows, "{columns: [a, b], kind: probabilities, temperature: 4}")
    assert softened == pytest.approx(4 * found)
    assert found[0, 1] == pytest.approx(math.log(0.75))


def test_a_score_is_a_number_or_an_array_of_one(tmp_path):
    assert answers(tmp_path, "t.csv", "text,label,s\na,1,-12.5\nb,2,22\n", "{columns: s}", SCORES).tolist() == [
        [-12.5],
        [22],
    ]
    lines = '{"text": "a", "label": 1, "s": [3]}\n{"text": "b", "label": 1.5, "s": 4.5}\n'
    assert answers(tmp_path, "t.jsonl", lines, "{columns: s, kind: scores}", SCORES).tolist() == [[3], [4.5]]


@pytest.mark.parametrize(
    ("file", "content", "teacher", "said"),
    [
        ("t.csv", "text,label,a,b\ng,yes,1,2\nb,no,,2\n", "{columns: [a, b]}", "t.csv, line 3, column 'a': no value"),
        ("t.csv", "text,label,a,b\ng,yes,1,two\n", "{columns: [a, b]}", "line 2, column 'b': 'two' is no number"),
        (
            "t.csv",
            "text,label,a,b\ng,yes,1,nan\n",
            "{columns: [a, b]}",
            "line 2, columns a, b: a value that is no finite",
        ),
        ("t.csv", "text,label,a\ng,yes,1\n", "{columns: [a, b]}", "no column 'b'"),
        (
            "t.jsonl",
            '{"text": "g", "label": "no", "t": [1]}\n',
            "{columns: t}",
            "line 1, column 't': 1 values; the task has 2",
        ),
        ("t.jsonl", '{"text": "g", "label": "no", "t": [1, null]}\n', "{columns: t}", "a value is missing in"),
        ("t.jsonl", '{"text": "g", "label": "no", "t": ["1", 2]}\n', "{columns: t}", "no array of numbers:"),
        ("t.jsonl", '{"text": "g", "label": "no", "t": null}\n', "{columns: t}", "line 1, column 't': no value"),
        (
            "t.csv",
            "text,label,a,b\ng,yes,0.2,0.8\nb,no,20,80\n",
            "{columns: [a, b], kind: probabilities}",
            "line 3, columns a, b: probabilities 20, 80 with the sum 100",
        ),
        ("t.csv", "text,label,a,b\ng,yes,-0.2,1\n", "{columns: [a, b], kind: probabilities}", "with the sum 0.8"),
    ],
)
def test_a_value_that_cannot_be_is_named_by_file_row_and_column(tmp_path, file, content, teacher, said):
    with pytest.raises(DataError, match=re.escape(said)):
        answers(tmp_path, file, content, teacher)


@pytest.mark.parametrize(
    ("teacher", "target", "said"),
    [
        ("[a, b]", LABELS, "teacher: a mapping with columns:"),
        ("{kind: logits}", LABELS, "teacher: a mapping with columns:"),
        ("{columns: [a, b], kinds: x}", LABELS, "teacher: a mapping with columns:"),
        ("{columns: [a, b], kind: scores}", LABELS, "teacher: kind: one of logits, probabilities, found 'scores'"),
        ("{columns: s, kind: probabilities}", SCORES, "teacher: kind: one of scores, logits"),
        ("{columns: [a, b, c]}", LABELS, "teacher: columns: one of arrays or 2, found 3: a, b, c"),
        ("{columns: [a, a]}", LABELS, "teacher: columns: different ones"),
        ("{columns: [a, b], labels: [no, maybe]}", LABELS, "teacher: labels: no, maybe are not the task's, no, yes"),
        ("{columns: {no: a}}", LABELS, "teacher: labels: no are not the task's"),
        ("{columns: [a, b], temperature: 2}", LABELS, "temperature: a number above 0, with `kind: probabilities`"),
        ("{columns: [a, b], kind: probabilities, temperature: 0}", LABELS, "temperature: a number above 0"),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, teacher, target, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        task(tmp_path, "t.csv", teacher, target)


def test_answers_are_kept_mapped_and_count_in_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setattr(task_tables, "BLOCK_ROWS", 2)
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer", None)
    (tmp_path / "home").mkdir()
    content = "text,label,a,b\n" + "".join(f"good,yes,{number},-1\nbad,no,0,{number}\n" for number in range(3))
    fingerprints = set()
    for text in (content, content, content.replace("-1", "-2")):
        (tmp_path / "t.csv").write_text(text)
        spec = task(tmp_path, "t.csv", "{columns: [a, b]}")
        rows = load_rows(spec, tmp_path, "train", tokenizer, 8, home=tmp_path / "home")
        assert rows.columns[COLUMNS][:, 0].tolist() == [0, 0, 1, 0, 2, 0]
        assert isinstance(rows.columns[COLUMNS], np.memmap)
        fingerprints.add(rows.fingerprint)
    assert len(fingerprints) == 2
    (damaged,) = (path for path in (tmp_path / "home").rglob("teacher.bin") if b"\x00\x00\x00\xc0" in path.read_bytes())
    damaged.write_bytes(damaged.read_bytes()[:-4])
    rows = load_rows(spec, tmp_path, "train", tokenizer, 8, home=tmp_path / "home")
    assert rows.columns[COLUMNS][-1].tolist() == [0, 2]
    plain = load_rows(load_task_file(tmp_path / "task.yaml"), tmp_path, "train", tokenizer, 8, home=tmp_path / "home")
    assert plain.columns == {}
