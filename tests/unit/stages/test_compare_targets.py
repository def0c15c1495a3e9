"""Models of every target are compared by its own metric: two that always say the same, whose figures follow by hand."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.support.models import tiny_config, write_tokenizer
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.stages import compare
from tinybert_ds.stages.compare import main

WORDS = "good film was"


def write_tags(folder):
    (folder / "t.txt").write_text("good O\nfilm X\nwas O\n\n" * 3 + "good O\n")
    head = "target: tags\nfiles: {train: t.txt, dev: t.txt}\ntext: 0\nlabel: 1\nlabels: [O, X]\n"
    return f"{head}metric: tag_accuracy\nmax_seq_length: 16\n"


def write_labels(folder):
    rows = [{"text": WORDS, "labels": labels} for labels in (["a"], ["a"], ["a", "b"], [])]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "target: multi_label\nfiles: {train: t.jsonl, dev: t.jsonl}\ntext: text\nlabel: labels\n"
    return f"{head}labels: [a, b]\nmetric: subset_accuracy\n"


def write_questions(folder):
    rows = [
        {"id": str(number), "question": "who", "context": WORDS, "answers": [{"text": text, "answer_start": 0}][:count]}
        for number, (text, count) in enumerate([("good", 1), ("good", 0), ("good", 0), ("good film", 1), ("good", 0)])
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "target: spans\nfiles: {train: t.jsonl, dev: t.jsonl}\ntext: [question, context]\nlabel: answers\n"
    return f"{head}metric: answer_f1\nmax_seq_length: 16\n"


def write_model(folder, auto_class, names, biases, **settings):
    """Write a model whose outputs are its biases whatever it reads."""
    write_tokenizer(folder)
    config = tiny_config(id2label=dict(enumerate(names)), num_hidden_layers=1, **settings)
    model = auto_class.from_config(config)
    head = model.qa_outputs if hasattr(model, "qa_outputs") else model.classifier
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(biases))
    model.save_pretrained(folder)


CASES = {
    "tags": (
        write_tags,
        (AutoModelForTokenClassification, ["O", "X"], [1.0, 0.0], {}),  # the commonest tag of 10
        (AutoModelForTokenClassification, ["X", "O"], [1.0, 0.0], {}),
        (0.7, 0.3, 0.7),
    ),
    "multi_label": (
        write_labels,
        (AutoModelForSequenceClassification, ["b", "a"], [-9.0, 9.0], {"thresholds": [0.5, 0.5]}),
        (AutoModelForSequenceClassification, ["a", "b"], [9.0, 9.0], {"thresholds": [0.5, 0.5]}),
        (0.5, 0.25, 0.5),
    ),
    "spans": (
        write_questions,
        (AutoModelForQuestionAnswering, ["start", "end"], [0.0, 0.0], {"thresholds": [-1.0, -1.0]}),  # never an answer
        (AutoModelForQuestionAnswering, ["start", "end"], [0.0, 0.0], {"thresholds": [1.0, 1.0]}),  # the first word
        (3 / 5, (1 + 2 / 3) / 5, 3 / 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_models_of_a_target_are_compared_by_its_metric_and_with_the_constant_answer(
    name, one_rank_group, monkeypatch, tmp_path
):
    monkeypatch.setattr(compare, "ROUNDS", 1)
    monkeypatch.setattr(compare, "LATENCY_BATCHES", {1: 1})
    monkeypatch.setattr(compare, "join", lambda log_level: World(0, 1, 0, torch.device("cpu")))
    write_task, teacher, student, expected = CASES[name]
    (tmp_path / "task.yaml").write_text(write_task(tmp_path))
    for role, (auto_class, names, biases, settings) in (("teacher", teacher), ("student", student)):
        write_model(tmp_path / role, auto_class, names, biases, **settings)
    words = {"teacher": tmp_path / "teacher", "student": tmp_path / "student", "data_dir": tmp_path, "split": "dev"}
    words |= {"task_file": tmp_path / "task.yaml", "output_dir": tmp_path / "out"}
    main([word for flag, value in words.items() for word in (f"--{flag}", str(value))])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = [report[place]["metric"] for place in ("teacher", "student", "majority_class")]
    assert found == pytest.approx(list(expected))
