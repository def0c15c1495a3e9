"""How many relation heads two models can be cut into."""

from __future__ import annotations

import pytest
import torch

from tinybert_ds.errors import ConfigError
from tinybert_ds.losses import choose_relation_heads, relation_loss


@pytest.mark.parametrize(
    ("student_width", "teacher_width", "expected"),
    [(312, 768, 24), (384, 768, 48), (192, 384, 48), (768, 768, 48), (768, 1024, 32), (312, 1024, 8), (7, 768, 1)],
)
def test_the_default_is_the_largest_number_of_heads_up_to_48_that_both_widths_allow(
    student_width, teacher_width, expected
):
    assert choose_relation_heads(student_width, teacher_width) == expected
    assert choose_relation_heads(student_width, teacher_width, expected) == expected


@pytest.mark.parametrize("asked", [0, -4, 10, 48])
def test_relation_heads_that_do_not_divide_are_refused_with_those_that_do(asked):
    message = (
        f"{asked} relation heads do not divide .* 312 and the teacher's 768; choose one of 1, 2, 3, 4, 6, 8, 12, 24$"
    )
    with pytest.raises(ConfigError, match=message):
        choose_relation_heads(312, 768, asked)
    states = torch.zeros(1, 12, 2, 26), torch.zeros(1, 12, 2, 64)
    with pytest.raises(ConfigError, match=message):
        relation_loss(*states, torch.ones(1, 2), relation_heads=asked)
