"""How `label_rows.py` writes what a model says of rows."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow import parquet

from data_tools import label_rows
from tinybert_ds.data.tasks import load_task_file

TASK = """
target: tags
files: {train: t.jsonl, dev: t.jsonl}
text: words
label: tags
labels: [O, X]
metric: tag_accuracy
"""


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_sentences_whose_other_values_differ_in_type_or_are_missing_go_into_one_parquet_file(
    tmp_path, monkeypatch, at_once
):
    monkeypatch.setattr(label_rows, "_ROWS_AT_ONCE", at_once)
    rows = [
        {"id": 7, "words": ["good", "film"], "page": 1, "score": 1},
        {"id": "x8", "words": ["city"], "tags": ["X"], "long": 1 << 70, "page": 2, "score": 0.5},
        {"id": True, "words": ["road"], "late": 0.5, "meta": {"a": 1}},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK)
    spec = load_task_file(tmp_path / "task.yaml")
    options = SimpleNamespace(data_dir=tmp_path, split="train", column="said", output=str(tmp_path / "o.parquet"))
    job = SimpleNamespace(spec=label_rows._unlabelled(spec, "train"))
    outputs = np.arange(8, dtype=np.float32).reshape(4, 2)
    schema = label_rows.sentence_schema(job, options)
    found = label_rows.labelled_sentences(job, options, outputs)
    label_rows.write_rows(tmp_path / "o.parquet", found, ".parquet", schema)
    none = {"long": None, "late": None, "tags": None, "page": None, "score": None}
    assert parquet.read_table(tmp_path / "o.parquet").to_pylist() == [
        {**none, "id": "7", "page": 1, "score": 1.0, "words": ["good", "film"], "said": [[0, 1], [2, 3]]},
        {
            **none,
            "id": "x8",
            "page": 2,
            "score": 0.5,
            "long": str(1 << 70),
            "words": ["city"],
            "tags": ["X"],
            "said": [[4, 5]],
        },
        {**none, "id": "true", "late": 0.5, "words": ["road"], "said": [[6, 7]]},
    ]
