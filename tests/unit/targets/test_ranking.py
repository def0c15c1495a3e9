"""Scores of the rows of a query: rankings, margins, and the pairs that they are learned from."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from tests.support.models import random_batch, write_tokenizer
from tinybert_ds.arguments import TaskDistillArguments, parse_arguments
from tinybert_ds.data.row_pairs import count_pairs, plan_pairs
from tinybert_ds.data.task_batches import TaskSource
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_tokens import load_rows
from tinybert_ds.data.tasks import TASKS, load_task_file
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.stages.task_distill import margin_problems
from tinybert_ds.targets import MARGINS, SCORES
from tinybert_ds.targets.scores import ranking_metrics

GROUPED = "target: scores\nfiles: {train: t.csv, dev: t.csv}\ntext: [q, d]\nlabel: rel\ngroup: query_id\n"


def task(folder, text=GROUPED + "metric: [ndcg_10, mrr_10, map]\n"):
    (folder / "task.yaml").write_text(text)
    return load_task_file(folder / "task.yaml")


def test_rankings_are_judged_query_by_query_as_counted_by_hand():
    groups = np.array([5, 5, 5, 9, 9, 7])
    labels = np.float32([0, 2, 1, 0, 1, 0])
    scores = np.float32([3, 2, 1, 9, 1, 4])
    found = ranking_metrics(["ndcg_10", "mrr_10", "map"], scores, labels, groups)
    # query 5: relevances 0 2 1 in this order, ideal 2 1 0; query 9: 0 1; query 7 has nothing relevant
    ideal = 2 + 1 / math.log2(3)
    ndcg = ((2 / math.log2(3) + 1 / 2) / ideal + 1 / math.log2(3) + 0) / 3
    assert found["ndcg_10"] == pytest.approx(ndcg, abs=1e-4)
    assert found["mrr_10"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3, abs=1e-4)
    assert found["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2 + 0) / 3, abs=1e-4)
    with pytest.raises(DataError, match=r"relevances are whole numbers from 0, found 0\.5"):
        ranking_metrics(["map"], scores, labels / 2 + 0.5, groups)
    assert ranking_metrics(["map"], scores * np.nan, labels, groups) == {"map": 0.0}


def test_metrics_of_rankings_stand_beside_correlations(tmp_path):
    spec = task(tmp_path, GROUPED + "metric: [spearman, map]\n")
    found = SCORES.measure(spec, np.float32([1, 2]), np.float32([0, 1]), np.array([0, 0]))
    assert found == {"spearman": pytest.approx(1.0), "map": pytest.approx(1.0)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GROUPED.replace("group: query_id\n", "") + "metric: map\n", "group: missing"),
        (GROUPED.replace("query_id", "[a, b]") + "metric: map\n", "group: one column, found"),
        (GROUPED + "metric: ndcg\n", "'ndcg' is no metric for regression; one of pearson, spearman, ndcg_10"),
    ],
)
def test_a_task_file_that_cannot_be_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        task(tmp_path, text)


@pytest.mark.parametrize(
    ("rows", "split", "said"),
    [
        (
            "a,b,q1,1\na,c,q1,0.5\n",
            "dev",
            "t.csv, line 3, column 'rel': the relevance 0.5; metric map is of whole",
        ),
        (
            "a,b,q1,1\na,c, ,0\n",
            "dev",
            "t.csv, line 3, column 'query_id': no value; it says which rows belong",
        ),
        ("a,b,,1\na,c,q2,0\n", "train", "t.csv, line 2, column 'query_id': no value"),
        ("a,b,q1,1\na,c,q1,0.5\n", "train", None),
    ],
)
def test_rows_without_a_query_and_relevances_that_are_no_grades_are_named_when_they_are_read(
    tmp_path, rows, split, said
):
    (tmp_path / "t.csv").write_text(f"q,d,query_id,rel\n{rows}")
    spec = task(tmp_path, GROUPED + "metric: [spearman, map]\n")
    if said is None:  # scores that are learned may be any
        assert read_split(spec, tmp_path, split).labels.tolist() == [1, 0.5]
        return
    with pytest.raises(DataError, match=re.escape(said)):
        read_split(spec, tmp_path, split)


def test_margins_are_compared_inside_pairs_of_one_query_only():
    batch = random_batch((4,) * 5)._replace(groups=torch.tensor([1, 1, 2, 3, 3]))
    batch = batch._replace(counts=batch.counts._replace(units=2.0))
    student, teacher = (
        torch.tensor([[3.0], [1.0], [0.0], [7.0], [1.0]]),
        torch.tensor([[20.0], [19.0], [9.0], [0.0], [2.0]]),
    )
    loss = MARGINS.teacher_loss(student, teacher, batch, temperature=1.0)  # 2 - 1; rows 2 and 3 are of two queries
    assert float(loss) == pytest.approx((2 - 1) ** 2 / 2)
    shifted = MARGINS.teacher_loss(student + 5, teacher - 50, batch, temperature=1.0)
    assert float(shifted) == pytest.approx(float(loss))
    nothing = batch._replace(groups=torch.arange(5), counts=batch.counts._replace(units=0.0))
    assert float(MARGINS.teacher_loss(student, teacher, nothing, temperature=1.0)) == 0


def test_every_row_comes_once_and_in_as_many_pairs_as_there_can_be():
    rng = np.random.default_rng(0)
    for rows, queries in ((40, 6), (41, 6), (7, 7), (1, 1), (2, 1), (33, 2)):
        groups, lengths = rng.integers(0, queries, rows) + 10**12, rng.integers(3, 40, rows)
        epochs = [plan_pairs(groups, lengths, 8, key) for key in (1, 1, 2)]
        steps = epochs[0]
        assert sorted(np.concatenate(steps).tolist()) == list(range(rows))
        assert [len(step) for step in steps] == [8] * (rows // 8) + [rows % 8] * (rows % 8 > 0)
        most = sum(count // 2 for count in np.unique(groups, return_counts=True)[1])
        assert sum(count_pairs(groups[step]) for step in steps) == most
        assert all(np.array_equal(one, other) for one, other in zip(steps, epochs[1], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(steps, epochs[2], strict=True))


def test_pairs_stay_together_on_any_number_of_ranks(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    lines = [f"the film,{'good ' * (n % 5 + 1)},{n % 3},q{n % 4}" for n in range(21)]
    (tmp_path / "t.csv").write_text("q,d,rel,query_id\n" + "\n".join(lines) + "\n")
    tokenizer = load_tokenizer(tmp_path / "tokenizer", None)
    rows = load_rows(task(tmp_path), tmp_path, "train", tokenizer, 16, home=tmp_path)
    assert len(set(rows.groups.tolist())) == 4
    options = {"max_seq_length": 16, "seed": 1, "padding": "valid", "pad_id": 0, "in_pairs": True}
    source = TaskSource(rows, global_batch_size=8, **options)
    for position in range(source.steps_in_epoch(0)):
        (whole,) = source.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
        parts = [source.micro_batches(0, position, rank=rank, world_size=4, accumulation=1)[0] for rank in range(4)]
        own = [part for part in parts if part.sample_ids[0] >= 0]
        assert torch.equal(torch.cat([part.sample_ids for part in own]), whole.sample_ids)
        pairs = sum(count_pairs(part.groups.numpy()) for part in own)
        assert pairs == count_pairs(whole.groups.numpy()) == whole.counts.units == 4 * own[0].counts.units
        scores = {row: float(row) ** 1.5 for row in whole.sample_ids.tolist()}

        def loss(batch, scores=scores):
            student = torch.tensor([[scores[row]] for row in batch.sample_ids.tolist()])
            return float(MARGINS.teacher_loss(student, torch.zeros_like(student), batch, temperature=1.0))

        assert sum(map(loss, own)) / 4 == pytest.approx(loss(whole), rel=1e-5)


def test_margins_need_a_group_a_teacher_and_batches_of_whole_pairs(tmp_path):
    def problems(spec, *words, ranks=1):
        command = (
            "--pred_distill --student_model s --teacher_model t --data_dir d --output_dir o --task_name sst-2".split()
        )
        arguments, found = parse_arguments(
            TaskDistillArguments, [*command, "--score_loss", "margin_mse", *words], "c.py"
        )
        assert found == []
        return margin_problems(arguments, spec, ranks)

    teacher = ["--regression_target", "teacher"]
    assert problems(task(tmp_path), *teacher) == []
    (said,) = problems(TASKS["sts-b"], *teacher)
    assert "has no `group` column" in said
    (said,) = problems(task(tmp_path))
    assert "add --regression_target teacher" in said
    (said,) = problems(task(tmp_path), *teacher, "--train_batch_size", "36", ranks=4)
    assert "give a multiple of 8" in said
