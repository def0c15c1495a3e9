"""How sure a teacher is of variants, in every precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_tools.teacher_filter import TeacherJudge, is_near, is_sure
from tests.support.models import model_directory
from tinybert_ds.data.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture
def teacher(tmp_path):
    model_directory(tmp_path / "teacher", labels=["negative", "positive"], scale=1.5)
    return tmp_path / "teacher"


def teacher_judge(directory, spec=TASKS["sst-2"], dtype=torch.float32):
    return TeacherJudge(
        directory,
        spec,
        lower_case=None,
        stated_labels=None,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def test_probabilities_are_those_of_the_teacher_in_the_order_of_the_tasks_labels(tmp_path):
    model_directory(tmp_path / "teacher", labels=["positive", "negative"])
    judge = teacher_judge(tmp_path / "teacher")
    texts = ["a good film", "bad", "the music was very dull and long , we saw it"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    for text, found in zip(texts, judge.probabilities((texts,)), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(found, logits.softmax(-1).flip(0).numpy(), atol=1e-5)
    long_texts = replace(TASKS["sst-2"], max_seq_length=100)  # of a model of 64 positions
    expected = judge.probabilities((["film " * 62],))
    found = teacher_judge(tmp_path / "teacher", long_texts).probabilities((["film " * 90],))
    np.testing.assert_array_equal(found, expected)


def test_half_precision_drops_what_float32_drops_and_leaves_most_rows_to_itself(teacher):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["film", "good", "bad", "music", "day", "plot", "dull"], 6)) for _ in range(200)]
    exact = teacher_judge(teacher).probabilities((texts,))
    judge = teacher_judge(teacher, dtype=torch.bfloat16)
    rounded = judge.probabilities((texts,))
    assert (rounded != exact).any(axis=1).mean() > 0.9
    probabilities = np.unique(exact.max(axis=1))
    gaps = np.flatnonzero(np.diff(probabilities) > 1e-5)
    for gap in gaps[:: len(gaps) // 9]:
        threshold = float(probabilities[gap : gap + 2].mean())
        found = judge.probabilities((texts,), near=threshold)
        sure = [[is_sure(row, threshold) for row in judged] for judged in (found, exact)]
        assert sure[0] == sure[1]
    far = ~is_near(rounded, 0.9)
    assert far.any()
    np.testing.assert_array_equal(judge.probabilities((texts,), near=0.9)[far], rounded[far])


def test_rows_are_near_a_threshold_by_their_odds_and_sure_up_to_float32s_noise():
    # Odds of 3 and 9: the logarithms are 1.10 and 2.20; of 0.85: 1.73, of 0.94: 2.75.
    rows = np.array([[0.75, 0.25], [0.15, 0.85], [0.06, 0.94], [1 - 1e-7, 1e-7]], dtype=np.float32)
    assert is_near(rows, 0.9).tolist() == [False, True, False, False]
    assert is_near(rows, 0.75).tolist() == [True, False, False, False]
    assert is_near(np.array([[0.5, 0.25, 0.25]], dtype=np.float32), 0.5).tolist() == [True]
    assert is_near(np.array([[1.0, 0.0], [1.0, 1e-6]], dtype=np.float32), 1.0).tolist() == [False, True]
    assert not is_near(rows, 0.0).any()
    assert [is_sure(row, 1.0) for row in rows] == [False, False, False, True]
    assert [is_sure(row, 0.85) for row in rows] == [False, True, True, True]
