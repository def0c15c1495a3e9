"""Which teacher output stands for which label."""

from __future__ import annotations

import pytest

from tests.support.models import tiny_config
from tinybert_ds.errors import ModelError
from tinybert_ds.models.labels import has_generic_labels, match_labels, output_names, set_labels

MNLI = ("contradiction", "entailment", "neutral")


def config_with(*names: str):
    config = tiny_config()
    config.id2label = dict(enumerate(names))
    return config


def test_columns_bring_the_teachers_outputs_into_the_tasks_order():
    columns = match_labels(config_with("entailment", "neutral", "contradiction"), MNLI, {}, None)
    assert columns == (2, 0, 1)


def test_capitals_hyphens_and_aliases_do_not_count():
    config = config_with("NOT_Entailment", "1")
    assert match_labels(config, ("entailment", "not-entailment"), {"1": "entailment"}, None) == (1, 0)


def test_a_label_that_is_also_an_alias_of_another_stands_for_itself():
    assert match_labels(config_with("1", "0"), ("0", "1"), {"0": "1"}, None) == (1, 0)


def test_generic_names_are_refused_unless_their_order_is_stated():
    config = tiny_config(num_labels=3)
    assert has_generic_labels(config)
    with pytest.raises(ModelError, match="--teacher_labels contradiction,entailment,neutral"):
        match_labels(config, MNLI, {}, None)
    assert match_labels(config, MNLI, {}, ["neutral", "contradiction", "entailment"]) == (1, 2, 0)


def test_stated_names_win_over_the_configs():
    assert match_labels(config_with("good", "bad"), ("negative", "positive"), {}, ["negative", "positive"]) == (0, 1)


@pytest.mark.parametrize(
    ("names", "stated", "message"),
    [
        (("yes", "no", "maybe"), None, r"are not the task's labels \(contradiction, entailment, neutral\)"),
        (("entailment", "entailment", "neutral"), None, "are not the task's labels"),
        (("entailment", "neutral"), None, "has 2 outputs .* the task has 3 labels"),
        (MNLI, ["entailment", "neutral"], "names 2 outputs .* has 3"),
        (MNLI, ["entailment", "neutral", "nuetral"], "are not the task's labels"),
    ],
)
def test_outputs_that_are_not_the_tasks_labels_are_refused(names, stated, message):
    with pytest.raises(ModelError, match=message):
        match_labels(config_with(*names), MNLI, {}, stated)


def test_outputs_that_do_not_exclude_each_other_are_refused_by_the_name_of_their_kind():
    config = config_with("bad", "good")
    config.problem_type = "multi_label_classification"
    with pytest.raises(ModelError, match=r'"problem_type": "multi_label_classification".*softmax'):
        match_labels(config, ("bad", "good"), {}, None)
    with pytest.raises(ModelError, match="multi_label_classification"):
        match_labels(config, ("bad", "good"), {}, ["bad", "good"])
    config.problem_type = "single_label_classification"
    assert match_labels(config, ("bad", "good"), {}, None) == (0, 1)


def test_a_task_is_written_into_a_config():
    config = tiny_config()
    set_labels(config, ("bad", "good", "mixed"))
    assert output_names(config) == ("bad", "good", "mixed")
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
    assert config.label2id == {"bad": 0, "good": 1, "mixed": 2}
    set_labels(config, None)
    assert (config.num_labels, config.problem_type) == (1, "regression")
    assert not has_generic_labels(config)


def test_names_follow_the_numbers_of_the_outputs():
    config = tiny_config()
    config.id2label = {1: "one", 10: "ten", 2: "two", 0: "zero"}
    assert output_names(config) == ("zero", "one", "two", "ten")
