import statistics

import pytest

from tinybert_ds.data.published_results import PUBLISHED_DEV
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.stages.glue_table import SplitResult, markdown, table

RESULTS = [
    SplitResult(TASKS["cola"], "dev", 1043, {"a": {"matthews": 0.5}, "b": {"matthews": 0.25}}),
    SplitResult(TASKS["mrpc"], "dev", 400, {n: {"accuracy": x, "f1": 0.9} for n, x in (("a", 0.7), ("b", 0.8))}),
    SplitResult(TASKS["mnli"], "dev", 9815, {n: {"accuracy": 0.8} for n in "ab"}),
    SplitResult(TASKS["mnli"], "dev_mismatched", 9832, {n: {"accuracy": 0.6} for n in "ab"}),
]


def test_the_average_counts_each_task_once_by_its_official_metric():
    average = table(RESULTS, {})["average"]
    assert average["a"] == pytest.approx((0.5 + (0.7 + 0.9) / 2 + (0.8 + 0.6) / 2) / 3)
    assert average["b"] == pytest.approx((0.25 + (0.8 + 0.9) / 2 + (0.8 + 0.6) / 2) / 3)


def test_published_figures_stand_beside_ours_only_on_the_benchmarks_own_rows():
    tasks = table(RESULTS, {})["tasks"]
    assert tasks["cola"]["dev"]["published"] == {"TinyBERT4": {"matthews": 0.508}}
    assert statistics.fmean(PUBLISHED_DEV["TinyBERT4"].values()) == pytest.approx(75.6, abs=0.05)
    assert tasks["mrpc"]["dev"]["published"] == {}  # 400 rows are not the benchmark's 408
    text = markdown(table(RESULTS, {}))
    assert "| task | split | rows | metric | a | b | TinyBERT4, published |" in text
    assert "| cola | dev | 1,043 | matthews | 50.0 | 25.0 | 50.8 |" in text
    assert "| mrpc | dev | 400 | accuracy | 70.0 | 80.0 |  |" in text
    assert "| mean of the 3 tasks' official metrics | | | | 66.7 |" in text


def test_a_table_without_comparable_figures_has_no_column_for_them():
    assert "published" not in markdown(table(RESULTS[1:2], {})).lower()


def test_a_submission_says_what_it_lacks():
    text = markdown(table(RESULTS, {"a": ["CoLA.tsv"]}))
    assert "a-submission.zip: CoLA.tsv; the server wants AX.tsv, MNLI-m.tsv" in text
