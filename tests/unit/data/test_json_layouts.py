"""JSON task files in the forms that people have: one list, an object with a list, objects within objects."""

from __future__ import annotations

import json

import pyarrow
import pytest
from pyarrow import parquet

from tests.unit.data.test_task_layouts import ROWS, TASK, assert_rows, read
from tinybert_ds.errors import DataError


@pytest.mark.parametrize("layout", ["list", "data", "one line", "indented"])
def test_a_json_file_may_be_one_list_of_objects(tmp_path, layout):
    rows = [{"text": text, "label": label} for text, label in ROWS]
    content = {
        "list": json.dumps(rows),
        "data": json.dumps({"version": 1, "data": rows}, indent=1),
        "one line": json.dumps({"data": rows}) + "\n",
        "indented": "\n" + json.dumps(rows, indent=4),
    }
    (tmp_path / "t.json").write_text(content[layout])
    assert_rows(read(tmp_path, "t.json"))


def test_a_json_file_of_an_object_a_line_may_hold_lists_called_data(tmp_path):
    (tmp_path / "t.json").write_text(
        "".join(json.dumps({"data": [1], "text": text, "label": label}) + "\n" for text, label in ROWS)
    )
    assert_rows(read(tmp_path, "t.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a", "label": "no"},\n {"text": "b" "label": 1}]', r"t.json, line 2, character 15: no JSON"),
        ('[{"text": "a", "label": "no"}, ["b"]]', r"t.json, record 2: a JSON list"),
        (
            '{"text": {"0": "a"},\n"label": {"0": "no"}}',
            r"an object with the keys text, label; .* has one under 'data'",
        ),
        ('[{"text": "a", "label": "no"}, {"text": null, "label": "no"}]', r"record 2, column 'text': no value"),
        ('[{"text": "a", "label": "no", "label": "yes"}]', r"t.json: no JSON \(the key 'label' stands twice"),
        ("[]", "t.json is empty"),
    ],
)
def test_what_is_wrong_in_a_json_document_is_said_with_its_place(tmp_path, content, said):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path, "t.json")


def test_keys_within_keys_are_written_with_dots(tmp_path):
    base = TASK.replace("text: text", "text: [q.text, choices.1]").replace("label: label", "label: gold.label")
    rows = [{"q": {"text": t}, "choices": ["x", t * 2], "gold": {"label": y}, "a.b": 1} for t, y in ROWS]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        examples = read(tmp_path, name, base=base)
        assert examples.texts == ([t for t, _ in ROWS], [t * 2 for t, _ in ROWS])
        assert examples.labels.tolist() == [1, 0, 1]
    rows[1]["q"] = {}
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"line 2, column 'q.text': no value"):
        read(tmp_path, "t.jsonl", base=base)
    with pytest.raises(DataError, match=r"column 'gold': a dict with label; a key in it is written gold.KEY"):
        read(tmp_path, "t.jsonl", base=base.replace("gold.label", "gold").replace("q.text", "choices.0"))
    (tmp_path / "t.jsonl").write_text('{"a.b": "dotted", "label": "no", "a": {"b": "nested"}}\n')
    assert read(tmp_path, "t.jsonl", base=TASK.replace("text: text", "text: a.b")).texts == (["dotted"],)
