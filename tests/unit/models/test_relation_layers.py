"""Which layers' relations between tokens a student imitates."""

from __future__ import annotations

import pytest

from tinybert_ds.errors import ConfigError
from tinybert_ds.models.relation_layers import choose_relation_layers

UNIFORM = (0, 3, 6, 9, 12)


@pytest.mark.parametrize(
    ("asked", "layer_map", "teacher_layers", "pairs"),
    [
        (None, UNIFORM, 12, ((4, 11),)),
        (None, (0, 1), 1, ((1, 1),)),
        ((), UNIFORM, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),
        (((2, 12), (4, 1)), UNIFORM, 12, ((2, 12), (4, 1))),
    ],
)
def test_the_last_but_one_of_the_teacher_unless_layers_are_named(asked, layer_map, teacher_layers, pairs):
    assert choose_relation_layers(asked, layer_map, teacher_layers) == pairs


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (((5, 3),), r"--relation_layers 5:3 names layer 5 of the student, which has layers 1\.\.4"),
        (((4, 13),), r"names layer 13 of the teacher, which has layers 1\.\.12"),
        (((5, 13),), "2 problems"),
    ],
)
def test_layers_that_there_are_not_are_refused(asked, said):
    with pytest.raises(ConfigError, match=said):
        choose_relation_layers(asked, UNIFORM, 12)
