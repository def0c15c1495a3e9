"""Any number of labels a row: files, losses, thresholds, predictions, and models of another kind."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from sklearn.metrics import f1_score

from tests.support.models import model_directory, random_batch, tiny_config
from tinybert_ds.data.metrics import compute_metrics
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.tasks import load_task_file
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.models.pretrained import load_headed
from tinybert_ds.stages.task_settings import read_settings, write_settings
from tinybert_ds.targets import LABELS, TARGETS, target_of
from tinybert_ds.targets.multi_label import best_threshold

MULTI = TARGETS["multi_label"]
NAMES = "labels: [food, price, staff]\n"


def task(folder, file, more="label: label\n" + NAMES):
    text = (
        f"target: multi_label\nfiles: {{train: {file}, dev: dev.tsv}}\ntext: text\nmetric: [micro_f1, macro_f1]\n{more}"
    )
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return load_task_file(folder / "task.yaml")


@pytest.fixture
def spec(tmp_path):
    return task(tmp_path, "train.tsv")


def labels(folder, file, content, more="label: label\n" + NAMES):
    (folder / file).write_text(content, encoding="utf-8")
    return read_split(task(folder, file, more), folder, "train").labels.tolist()


EXPECTED = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("file", "content", "more"),
    [
        ("t.tsv", "text\tlabel\na\tfood|staff\nb\t\nc\tPrice\n", ""),
        ("t.csv", "text,label\na,staff;food\nb,\nc,price;\n", "label_separator: ;\n"),
        ("t.csv", 'text,label\na,"[""food"", ""staff""]"\nb,[]\nc,"[0, 1, 0]"\n', ""),
        ("t.csv", "text,label\na,f|s\nb,\nc,p\n", "aliases: {f: food, p: price, s: staff}\n"),
    ],
)
def test_labels_stand_in_one_field(tmp_path, file, content, more):
    assert labels(tmp_path, file, content, f"label: label\n{NAMES}{more}") == EXPECTED


def test_labels_stand_in_arrays_of_json_and_datasets(tmp_path):
    for given in ([["food", "staff"], [], ["price"]], EXPECTED, [[True, False, True], [0.0, 0.0, 0.0], [0, 1.0, 0]]):
        lines = "".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in zip("abc", given, strict=True))
        assert labels(tmp_path, "t.jsonl", lines) == EXPECTED
    features = Features({"text": Value("string"), "label": Sequence(ClassLabel(names=["staff", "food", "price"]))})
    rows = Dataset.from_dict({"text": list("abc"), "label": [[1, 0], [], [2]]}, features=features)
    rows.to_parquet(tmp_path / "t.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for file in ("t.parquet", "saved"):
        assert read_split(task(tmp_path, file), tmp_path, "train").labels.tolist() == EXPECTED


@pytest.mark.parametrize("label", ["[f, p, s]", "{food: f, staff: s, price: p}"])
def test_each_label_may_have_a_column_of_yes_and_no(tmp_path, label):
    rows = "text,f,p,s\na,1,0,yes\nb,0,0,0\nc,False,True,0.0\n"
    assert labels(tmp_path, "t.csv", rows, f"label: {label}\n{NAMES}") == EXPECTED
    test = task(tmp_path, "t.csv", f"label: {label}\n{NAMES}".replace("label:", "eval_split: dev\nlabel:"))
    assert test.splits["train"].label == "f"
    with pytest.raises(DataError, match="line 2, column 'p': '2' is no yes or no"):
        labels(tmp_path, "t.csv", "text,f,p,s\na,1,2,0\n", f"label: {label}\n{NAMES}")


def test_the_columns_may_lie_inside_objects(tmp_path):
    rows = [{"text": "a", "l": dict(zip("fps", row, strict=True))} for row in EXPECTED]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    for label in ("[l.f, l.p, l.s]", "{food: l.f, staff: l.s, price: l.p}"):
        assert labels(tmp_path, "t.jsonl", content, f"label: {label}\n{NAMES}") == EXPECTED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text\tlabel\na\tfood|drink\n", "t.tsv, line 2, column 'label': task task has no label 'drink'; it has food"),
        ('text\tlabel\na\t["food", 0.5]\n', "is no array of labels; give their names, or 0 or 1"),
        ("text\tlabel\na\t[0, 1]\n", "has no label '0'"),
        ("text\tlabel\na\tfood\nb\tfood\n", "all 2 rows have the same labels (food); there is nothing to learn"),
    ],
)
def test_what_is_no_label_is_named_by_file_line_and_column(tmp_path, content, said):
    with pytest.raises(DataError, match=re.escape(said)):
        labels(tmp_path, "t.tsv", content)


def test_labels_that_no_row_or_every_row_has_are_told(tmp_path, caplog):
    labels(tmp_path, "t.tsv", "text\tlabel\na\tfood|staff\nb\tfood\n")
    assert "no row has the label price; nothing can be learned about it" in caplog.text
    assert "every row has the label food; nothing can be learned about it" in caplog.text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (f"label: [a, b]\n{NAMES}", "label: one column, or one for each of food, price, staff; found a, b"),
        (f"label: {{food: a, price: b, stuff: c}}\n{NAMES}", "label: one column, or one for each of"),
        (f"label: label\n{NAMES}label_separator: o\n", "label_separator: 'o' is a part of one of the labels"),
        (f"label: label\n{NAMES}skip_labels: [x]\n", "skip_labels: leave it out with `target: multi_label`"),
        ("label: label\n", "labels: missing"),
        (f"label: label\n{NAMES}label_separator: [a]\n", "label_separator: some characters that no label has in it"),
    ],
)
def test_a_task_file_that_cannot_be_is_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        task(tmp_path, "t.tsv", more)


def test_a_key_of_another_target_is_named_with_its_owner(tmp_path):
    text = "files: {train: a, dev: b}\ntext: t\nlabel: l\nlabels: [a, b]\nmetric: accuracy\nlabel_separator: x\n"
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ConfigError, match="label_separator: for `target: multi_label`; the target here is labels"):
        load_task_file(tmp_path / "task.yaml")


def test_losses_are_binary_cross_entropies_over_rows_and_labels():
    batch = random_batch((4, 4))._replace(labels=torch.tensor([[1, 0], [1, 1]], dtype=torch.int64))
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    expected = (3 * math.log(2) - math.log(0.75)) / 4  # sigmoid(log 3) = 3/4
    assert float(MULTI.label_loss(logits, batch)) == pytest.approx(expected)
    teacher = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    of_itself = (3 * math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 4
    assert float(MULTI.teacher_loss(logits, teacher, batch, temperature=1.0)) == pytest.approx(of_itself)
    halved = MULTI.teacher_loss(2 * logits, 2 * teacher, batch, temperature=2.0)
    assert float(halved) == pytest.approx(of_itself)
    doubled = batch._replace(counts=batch.counts._replace(rows=4.0))
    assert float(MULTI.label_loss(logits, doubled)) == pytest.approx(expected / 2)


def test_the_losses_of_ranks_add_up_to_that_of_the_batch_and_one_without_rows_adds_nothing():
    encoded = EncodedExamples(np.int32([5, 6]), np.arange(3), np.int32([1, 1]), np.uint8([[1, 0, 1], [0, 0, 1]]))
    options = {"global_batch_size": 2, "max_seq_length": 8, "seed": 1, "padding": "valid", "pad_id": 0}
    source = TaskSource(encoded, shuffle=False, **options)
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))

    def losses(batch):
        logits = values[batch.sample_ids.clamp_min(0)]
        teacher_loss = MULTI.teacher_loss(logits, -logits, batch, temperature=2.0)
        return [float(MULTI.label_loss(logits, batch)), float(teacher_loss)]

    (whole,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    parts = [source.micro_batches(0, 0, rank=rank, world_size=3, accumulation=1)[0] for rank in range(3)]
    assert [-1] in [part.sample_ids.tolist() for part in parts]
    assert np.mean([losses(part) for part in parts], axis=0) == pytest.approx(losses(whole))


def test_the_threshold_has_the_highest_f1_of_all_there_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        probabilities = rng.integers(0, 8, 12) / 8  # equal ones too
        truth = rng.integers(0, 2, 12)
        if not truth.any():
            continue
        found = best_threshold(probabilities, truth)
        best = max(f1_score(truth, probabilities >= cut, zero_division=0.0) for cut in np.unique(probabilities))
        assert f1_score(truth, probabilities >= found) == pytest.approx(best)
    assert best_threshold(np.array([0.9, 0.2]), np.array([1, 0])) == pytest.approx(0.55)
    assert best_threshold(np.array([0.9, 0.2]), np.array([0, 0])) == 0.5


def test_predictions_obey_thresholds_and_are_spelled_as_the_files_do(spec):
    logits = np.array([[2.0, -1.0, 0.5], [-3.0, -3.0, -3.0]])
    assert MULTI.predict(spec, logits, {}).tolist() == [[1, 0, 1], [0, 0, 0]]
    moved = MULTI.predict(spec, logits, {"thresholds": np.array([0.95, 0.2, 0.5])})
    assert moved.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert MULTI.words(spec, moved) == ["price|staff", ""]
    truth = np.array([[1, 1, 0], [0, 0, 1]], dtype=np.uint8)
    settled = MULTI.settle(spec, np.array([[-1.0, -2.0, -3.0], [-2.0, -3.0, -1.0]]), truth)
    assert MULTI.measure(
        spec, MULTI.predict(spec, np.array([[-1.0, -2.0, -3.0], [-2.0, -3.0, -1.0]]), settled), truth
    ) == {
        "micro_f1": 1.0,
        "macro_f1": 1.0,
    }
    assert MULTI.constant_answer(truth[:1]).tolist() == [1, 1, 0]


def test_micro_and_macro_f1_are_those_counted_by_hand(spec):
    truth, found = np.array([[1, 0, 1], [1, 1, 0]]), np.array([[1, 0, 0], [1, 0, 1]])
    # food 2 hits; price 1 missed; staff 1 missed and 1 wrong
    assert compute_metrics(spec, found, truth) == {
        "micro_f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 2)),
        "macro_f1": pytest.approx(1 / 3),
    }


def test_a_softmax_is_not_taken_for_sigmoids_nor_sigmoids_for_a_softmax(spec, tmp_path):
    names = dict(enumerate(("food", "price", "staff")))
    for stated, fits in ((None, True), ("multi_label_classification", True), ("single_label_classification", False)):
        config = tiny_config(id2label=names, problem_type=stated)
        if fits:
            assert MULTI.columns(spec, config, None, role="teacher") == [0, 1, 2]
        else:
            with pytest.raises(ModelError, match=r"says .problem_type.: .single_label_classification."):
                MULTI.columns(spec, config, None, role="teacher")
    several = tiny_config(id2label=names, problem_type="multi_label_classification")
    with pytest.raises(ModelError, match="read by a softmax over all outputs"):
        LABELS.columns(spec, several, None, role="teacher")
    directory = model_directory(tmp_path / "model", labels=tuple(names.values()))
    model = load_headed(directory, MULTI.head(spec), role="student")
    assert model.config.problem_type is None  # a required head keeps its own config


def test_thresholds_are_kept_in_the_order_of_the_models_outputs(spec, tmp_path):
    directory = model_directory(tmp_path / "model", labels=("staff", "food", "price"))
    config = load_headed(directory, MULTI.head(spec), role="student").config
    columns = MULTI.columns(spec, config, None, role="student")
    assert read_settings(config, MULTI.setting_names, columns, role="model") is None
    write_settings(directory, {"thresholds": np.array([0.1, 0.2, 0.3])}, columns)
    assert json.loads((directory / "config.json").read_text())["thresholds"] == [0.3, 0.1, 0.2]
    again = load_headed(directory, MULTI.head(spec), role="student").config
    found = read_settings(again, MULTI.setting_names, columns, role="model")
    assert found["thresholds"].tolist() == [0.1, 0.2, 0.3]
    again.thresholds = [0.5, "x", 1]
    with pytest.raises(ModelError, match="a number for each of its 3 outputs"):
        read_settings(again, MULTI.setting_names, columns, role="model")
    assert target_of(spec) is MULTI
