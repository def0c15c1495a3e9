"""Each classification task of CLUE in the files that the benchmark distributes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.support.clue_files import CLUE_FILES, write_clue
from tinybert_ds.arguments.recipes import shipped_recipes
from tinybert_ds.data.published_results import PUBLISHED_DEV, SOURCES, comparable_figure
from tinybert_ds.data.submission import CLUE_SUBMISSION_FILES, format_predictions, read_index
from tinybert_ds.data.submission import test_splits as find_test_splits
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.tasks import BENCHMARKS, TASKS, find_task_folder
from tinybert_ds.data.text_forms import FORMS
from tinybert_ds.errors import DataError


@pytest.fixture(scope="module")
def clue(tmp_path_factory):
    root = tmp_path_factory.mktemp("clue")
    write_clue(root)
    return root


@pytest.mark.parametrize("name", CLUE_FILES)
def test_a_task_is_read_from_its_own_files(clue, name):
    spec, (_, _, labels, texts) = TASKS[name], CLUE_FILES[name]
    for split in ("train", "dev"):
        examples = read_split(spec, find_task_folder(spec, clue), split)
        assert list(zip(*examples.texts, strict=True)) == texts
        assert [spec.label_names[label] for label in examples.labels] == labels


@pytest.mark.parametrize("name", CLUE_FILES)
def test_a_test_file_has_no_labels_and_every_row_of_it_is_predicted_by_its_id(clue, name):
    spec, rows = TASKS[name], CLUE_FILES[name][1]
    folder = find_task_folder(spec, clue)
    assert read_split(spec, folder, "test").labels is None
    index = read_index(spec, folder, "test")
    assert index == [str(number) for number in range(len(rows))]
    content = format_predictions(spec, index, np.zeros(len(rows), dtype=np.int64))
    first = {"cmnli": "entailment", "ocnli": "entailment", "tnews": "100", "cluewsc2020": "false"}.get(name, "0")
    assert [json.loads(line) for line in content.splitlines()] == [{"id": n, "label": first} for n in range(len(rows))]


def test_the_submission_has_the_names_that_the_server_asks_for(clue, tmp_path):
    found = [file for spec in BENCHMARKS["clue"] for file in find_test_splits(spec, clue / spec.directory).values()]
    assert found == [
        *("afqmc_predict.json", "tnews11_predict.json", "iflytek_predict.json", "cmnli_predict.json"),
        *("ocnli_50k_predict.json", "cluewsc11_predict.json", "csl_predict.json"),
    ]
    (tmp_path / "test1.0.json").write_text('{"id": 0, "sentence": "a"}\n')
    assert find_test_splits(TASKS["tnews"], tmp_path) == {"test1.0": "tnews10_predict.json"}
    assert all(split in TASKS[task].splits for task, split in CLUE_SUBMISSION_FILES)


def test_the_classes_are_as_many_as_the_benchmark_has():
    counts = {"afqmc": 2, "tnews": 15, "iflytek": 119, "cmnli": 3, "ocnli": 3, "cluewsc2020": 2, "csl": 2}
    assert {spec.name: spec.num_labels for spec in BENCHMARKS["clue"]} == counts
    assert {spec.max_seq_length for spec in BENCHMARKS["clue"]} == {128, 256}


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        ("joined_keywords", {"keyword": 3}, "column 'keyword': 3; a list of words is expected"),
        ("marked_spans", {"text": "ab"}, "no target with span1_text"),
        (
            "marked_spans",
            {"text": "ab", "target": {"span1_text": "a", "span1_index": 0, "span2_text": "b", "span2_index": 0}},
            "'b' does not stand at character 0",
        ),
    ],
)
def test_a_row_whose_texts_cannot_be_put_together_is_refused_with_its_place(form, row, said):
    with pytest.raises(DataError, match=f"f.json, line 7.*{said}"):
        FORMS[form](row, "f.json, line 7")


def test_published_figures_of_the_chinese_tinyberts_name_their_source():
    assert set(SOURCES) == set(PUBLISHED_DEV)
    assert comparable_figure("TinyBERT4-zh", "iflytek", "dev", "accuracy", 2599) == pytest.approx(0.3971)
    assert comparable_figure("TinyBERT4-zh", "iflytek", "dev", "accuracy", 2600) is None


def test_every_task_has_a_recipe_with_the_baselines_settings():
    recipes = shipped_recipes()
    assert {name for name in recipes if name.startswith("clue/")} == {
        f"clue/{spec.name}" for spec in BENCHMARKS["clue"]
    }
    assert recipes["clue/csl"]["finetune"] == {
        "learning_rate": "1e-5",
        "train_batch_size": "8",
        "num_train_epochs": "5",
    }
    assert recipes["clue/tnews"]["finetune"]["learning_rate"] == "2e-5"
