"""The export of models that answer with spans of a context: both outputs, judged by the task's own windows."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.support.models import WORDS
from tests.unit.stages.test_export import run_export
from tests.unit.stages.test_export_targets import exported, offer, repeated, student
from tinybert_ds.export.measure import agreement_of

ANSWER_F1 = """
from collections import Counter
def f1(found, right):
    ours, theirs = ([word for word in text.split() if word not in ("a", "an", "the")] for text in (found, right))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))
scores = []
for row in map(json.loads, open(rows)):
    found = tokenizer.encode(row["question"], row["context"])
    starts, ends = run(found, "start_logits"), run(found, "end_logits")
    inside = [place for place, of in enumerate(found.sequence_ids) if of == 1]
    pairs = [(a, b) for a in inside for b in inside if a <= b < a + 30]
    first, last = max(pairs, key=lambda pair: starts[pair[0]] + ends[pair[1]])
    span = row["context"][found.offsets[first][0] : found.offsets[last][1]]
    if starts[0] + ends[0] - starts[first] - ends[last] > sum(config["thresholds"]):
        span = ""
    scores.append(max(f1(span, answer["text"]) for answer in row["answers"] or [{"text": ""}]))
print(np.mean(scores))
"""
TASK = (
    "target: spans\nfiles: {train: rows.jsonl, dev: rows.jsonl}\ntext: [question, context]\nlabel: answers\n"
    "metric: answer_f1\nmax_seq_length: 64\n"
)


def write_questions(file, *, count):
    """Questions about noise, every fourth without an answer."""
    rng, lines = random.Random(0), []
    for number in range(count):
        words = rng.choices([word for word in WORDS if word.isalpha()], k=rng.randint(6, 16))
        start = rng.randrange(len(words) - 2)
        text = " ".join(words[start : start + 2])
        answer = {"text": text, "answer_start": len(" ".join(["", *words[:start]]))}
        question = " ".join(rng.choices(WORDS[:20], k=3))
        answers = [answer] if number % 4 else []
        lines.append({"id": str(number), "question": question, "context": " ".join(words), "answers": answers})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.slow  # a graph is traced, written, optimised and measured
def test_starts_and_ends_are_outputs_of_the_graph_and_judged_by_the_answers(tmp_path):
    write_questions(tmp_path / "rows.jsonl", count=40)
    (tmp_path / "task.yaml").write_text(TASK)
    student(tmp_path, ("start", "end"), "spans")
    rows = exported(tmp_path)
    assert rows["ONNX fp32"]["metric"] == rows["torch fp32"]["metric"] > 0.05
    assert rows["ONNX fp32"]["largest_difference"] < 1e-4
    assert rows["ONNX fp32"]["agreement"] == 1
    assert 0.5 < rows["ONNX int8 dynamic"]["agreement"] <= 1
    for file, name in (("model.onnx", "ONNX fp32"), ("model_quantized.onnx", "ONNX int8 dynamic")):
        found = repeated(ANSWER_F1, tmp_path / "out", f"onnx/{file}", tmp_path / "rows.jsonl")
        assert found == pytest.approx(rows[name]["metric"], abs=1e-6 if name == "ONNX fp32" else 0.1), name
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["thresholds"]) == 2
    assert offer(tmp_path) == ("question-answering", {"answer_f1"})


@pytest.mark.exhaustive
def test_without_a_task_the_spans_of_noise_are_compared_by_openvino_too(tmp_path):
    student(tmp_path, ("start", "end"), "spans")
    words = ["--model", tmp_path / "student", "--output_dir", tmp_path / "out", "--precision", "fp32"]
    run_export([str(word) for word in [*words, "--max_seq_length", 40]])
    _, *rows = json.loads((tmp_path / "out" / "report.json").read_text())["exports"]
    assert [(row["name"], row["metric"], row["agreement"]) for row in rows] == [
        ("ONNX fp32", None, 1),
        ("OpenVINO fp32", None, 1),
    ]
    assert ModelCard.load(tmp_path / "out" / "README.md").data.pipeline_tag == "question-answering"


def test_spans_agree_where_the_highest_start_and_the_highest_end_of_a_row_are_the_same_tokens():
    offsets = np.array([0, 3, 5])  # rows of three and two tokens
    reference = np.array([[1, 0], [5, 0], [0, 2], [3, 3], [4, 1]], np.float32)  # token 1 to 2; token 1 to 0
    found = reference.copy()
    found[0, 0] = 4.5  # still lower than the second token's
    assert agreement_of(found, reference, "spans", offsets) == 1
    found[4, 1] = 9  # the second row's end is elsewhere
    assert agreement_of(found, reference, "spans", offsets) == 0.5
