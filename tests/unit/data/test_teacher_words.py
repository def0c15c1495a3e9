"""A teacher of tags that is only a column: an array for each word."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.support.models import VOCABULARY, write_tokenizer
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_tokens import load_rows
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.teacher_columns import COLUMNS, with_teacher
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import DataError

ROWS = [{"tokens": ["films", "was"], "said": [[1, 2], [3, 4]]}, {"tokens": ["good"], "said": [[5, 6.5]]}]


def task(folder, file, teacher="{columns: said}", columns="text: tokens\nlabel: tags\n"):
    text = f"target: tags\nfiles: {{train: {file}, dev: {file}}}\n{columns}labels: [O, X]\nmetric: tag_accuracy\n"
    (folder / "task.yaml").write_text(f"{text}teacher: {teacher}\n")
    spec = with_teacher(load_task_file(folder / "task.yaml"))
    return replace(spec, splits={"train": replace(spec.splits["train"], may_lack_label=True)})


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def answers(folder, rows=ROWS, teacher="{columns: said}"):
    (folder / "t.jsonl").write_text(lines(rows))
    return read_split(task(folder, "t.jsonl", teacher), folder, "train").columns[COLUMNS].tolist()


def test_arrays_are_read_word_by_word_in_the_tasks_order_of_tags(tmp_path):
    assert answers(tmp_path) == [[1, 2], [3, 4], [5, 6.5]]
    assert answers(tmp_path, teacher="{columns: said, labels: [X, O]}") == [[2, 1], [4, 3], [6.5, 5]]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    assert read_split(task(tmp_path, "t.parquet"), tmp_path, "train").columns[COLUMNS].tolist() == answers(tmp_path)
    likely = [{"tokens": ["film"], "said": [[0.25, 0.75]]}]
    found = answers(tmp_path, likely, "{columns: said, kind: probabilities, temperature: 2}")
    assert found == pytest.approx(np.array([[2 * math.log(0.25), 2 * math.log(0.75)]]))


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({}, "logits", "line 2, column 'said': no value"),
        ({"said": [[1, 2]] * 3}, "logits", "line 2, column 'said': an array for each of 2 words is expected, found 3"),
        ({"said": "1 2"}, "logits", "an array for each of 2 words is expected, found 1 2"),
        ({"said": [[1, 2], [1]]}, "logits", "line 2, column 'said', word 2: 1 values; the task has 2 outputs"),
        ({"said": [[1, 2], 3]}, "logits", "word 2: 3; the task has 2 outputs"),
        ({"said": [[1, 2], [None, 1]]}, "logits", "a value that is missing or no finite number"),
        ({"said": [["1", "2"], ["3", "4"]]}, "logits", "a value that is missing or no finite number"),
        ({"said": [[0.5, 0.5], [3, 1]]}, "probabilities", "line 2, column 'said', word 2: probabilities 3, 1 with the"),
    ],
)
def test_what_cannot_be_is_named_by_sentence_and_word(tmp_path, row, kind, said):
    rows = [{"tokens": ["good"], "said": [[0.5, 0.5]]}, {"tokens": ["film", "was"], **row}]
    with pytest.raises(DataError, match=re.escape(said)):
        answers(tmp_path, rows, f"{{columns: said, kind: {kind}}}")


def test_a_file_with_a_word_a_line_has_no_room_for_them(tmp_path):
    (tmp_path / "t.txt").write_text("good O\n\nfilm X\n")
    with pytest.raises(DataError, match="line 1: a file with a word a line has no arrays for `teacher`"):
        read_split(task(tmp_path, "t.txt", columns="text: 0\nlabel: 1\n"), tmp_path, "train")


def test_they_follow_the_words_of_long_sentences_from_row_to_row(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "home").mkdir()
    words = ["films", "was", "good", "city"] * 5
    rows = [{"tokens": words, "said": [[at, -at] for at in range(20)]}, {"tokens": ["bad"], "said": [[99, 0]]}]
    (tmp_path / "t.jsonl").write_text(lines(rows))
    tokenizer, home = load_tokenizer(tmp_path / "tokenizer", None), tmp_path / "home"
    encoded = load_rows(task(tmp_path, "t.jsonl"), tmp_path, "train", tokenizer, 10, home=home)
    assert len(encoded) > 3
    first_pieces = [VOCABULARY[token] for token in encoded.tokens[encoded.units]]
    assert first_pieces == ["film", "was", "good", "city"] * 5 + ["bad"]
    assert encoded.columns[COLUMNS][:, 0].tolist() == [*range(20), 99]
