"""Targets of one label and of one score a row: what they say of a task's rows, losses and predictions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.models import random_batch, tiny_config
from tinybert_ds.data.tasks import TASKS, load_task_file
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.models.labels import Head
from tinybert_ds.targets import LABELS, SCORES, TARGETS, target_of

SENTIMENT, SIMILARITY = TASKS["sst-2"], TASKS["sts-b"]


def test_a_task_with_names_of_labels_has_labels_and_one_without_has_scores():
    assert (target_of(SENTIMENT), target_of(SIMILARITY)) == (LABELS, SCORES)
    assert {name: target.name for name, target in TARGETS.items()} == {name: name for name in TARGETS}


def test_predictions_are_the_best_class_or_the_score_kept_in_range():
    assert LABELS.predict(SENTIMENT, np.array([[0.1, 0.2], [3.0, -1.0]]), {}).tolist() == [1, 0]
    assert SCORES.predict(SIMILARITY, np.array([[-0.5], [2.5], [5.5]]), {}).tolist() == [0.0, 2.5, 5.0]


def test_the_answer_that_never_looks_is_the_commonest_label_or_the_mean_score():
    assert LABELS.constant_answer(np.array([1, 0, 1, 2])) == 1
    assert LABELS.constant_answer(np.array([1, 0])) == 0
    assert SCORES.constant_answer(np.float32([1, 2, 6])) == 3.0


def test_a_field_is_read_as_a_label_or_a_score_and_written_again():
    assert [LABELS.parser(SENTIMENT)(text, "here") for text in ("0", "Positive")] == [0, 1]
    assert LABELS.field(SENTIMENT, 1) == "1"
    assert LABELS.field(TASKS["rte"], 1) == "not_entailment"
    assert SCORES.parser(SIMILARITY)("2.50", "here") == 2.5
    assert SCORES.field(SIMILARITY, 2.5) == "2.5"
    for target, spec, text in ((LABELS, SENTIMENT, "2"), (SCORES, SIMILARITY, "5.1"), (SCORES, SIMILARITY, "high")):
        with pytest.raises(DataError, match=f"^line 7: .*{text}.* task {spec.name}|^line 7: task {spec.name}.*{text}"):
            target.parser(spec)(text, "line 7")


def test_the_head_has_the_tasks_labels_or_one_output_whatever_its_name():
    assert LABELS.head(SENTIMENT) == Head(("negative", "positive"))
    assert SCORES.head(SIMILARITY) == Head(None)
    turned = tiny_config(id2label={0: "positive", 1: "negative"})
    assert LABELS.columns(SENTIMENT, turned, None, role="teacher") == [1, 0]
    assert SCORES.columns(SIMILARITY, tiny_config(id2label={0: "LABEL_0"}), None, role="teacher") == [0]


def test_labels_are_learned_by_cross_entropies_and_scores_by_squared_errors():
    batch = random_batch((4, 4))._replace(labels=torch.tensor([0, 1]))
    even = torch.zeros(2, 2)
    assert float(LABELS.label_loss(even, batch)) == pytest.approx(math.log(2))
    assert float(LABELS.teacher_loss(even, even, batch, temperature=3.0)) == pytest.approx(math.log(2) / 2)
    scored = batch._replace(labels=torch.tensor([1.0, 3.0]))
    assert float(SCORES.label_loss(torch.tensor([[0.0], [0.0]]), scored)) == pytest.approx((1 + 9) / 2)
    teacher = torch.tensor([[2.0], [0.0]])
    assert float(SCORES.teacher_loss(torch.zeros(2, 1), teacher, scored, temperature=1.0)) == pytest.approx(4 / 2)


def findings(target, spec, labels):
    audit = target.audit(spec)
    for block in np.array_split(labels, 2):
        audit.look(block)
    return list(audit.findings(len(labels)))


def test_rows_that_are_all_alike_and_classes_without_a_row_are_found():
    spec = replace(SENTIMENT, label_names=("a", "b", "c"))
    assert findings(LABELS, spec, np.array([0, 1, 2, 2])) == []
    assert findings(LABELS, spec, np.array([1, 1])) == [("all 2 rows have the label 'b'", True)]
    assert findings(LABELS, spec, np.array([0, 1])) == [
        ("no row has the label c; nothing can be learned about it", False)
    ]
    assert findings(SCORES, SIMILARITY, np.float32([1, 2])) == []
    assert findings(SCORES, SIMILARITY, np.float32([2, 2])) == [("all 2 scores are 2", True)]


COMMON = "files: {train: a.tsv, dev: b.tsv}\ntext: t\nlabel: l\n"


def read(folder, text):
    (folder / "task.yaml").write_text(COMMON + text, encoding="utf-8")
    return load_task_file(folder / "task.yaml")


def test_a_task_file_may_state_its_target_which_reads_the_same_as_leaving_it_out(tmp_path):
    labelled, scored = "labels: [a, b]\nmetric: f1\n", "score_range: [0, 1]\nmetric: spearman\n"
    assert read(tmp_path, "target: labels\n" + labelled) == read(tmp_path, labelled)
    assert read(tmp_path, "target: scores\n" + scored) == read(tmp_path, scored)
    open_ended = read(tmp_path, "target: scores\nmetric: spearman\n")
    assert (target_of(open_ended), open_ended.score_range) == (SCORES, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "target: label\nlabels: [a, b]\nmetric: f1\n",
            r"target: one of labels, scores.*'label'.*did you mean labels",
        ),
        ("target: vectors\nlabels: [a, b]\nmetric: f1\n", "found 'vectors'; .*embed_distill.py learns them"),
        ("target: [labels]\nlabels: [a, b]\nmetric: f1\n", "target: one of labels, scores.*found"),
        ("target: labels\nscore_range: [0, 1]\nmetric: f1\n", "labels: missing with `target: labels`"),
        ("target: scores\nlabels: [a, b]\nmetric: pearson\n", "labels: leave it out with `target: scores`"),
        ("target: scores\nmetric: accuracy\n", "'accuracy' is no metric for regression; one of pearson, spearman"),
    ],
)
def test_a_target_that_does_not_fit_the_rest_of_a_task_file_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)
