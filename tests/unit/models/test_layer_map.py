"""Layer maps against the tables of the paper and hand-written ones."""

from __future__ import annotations

import pytest

from tests.support.models import tiny_config
from tinybert_ds.errors import ConfigError
from tinybert_ds.models.layer_map import attention_layers, full_attention_layers, parse_layer_map


@pytest.mark.parametrize(
    ("spec", "teacher_layers", "student_layers", "expected"),
    [
        ("uniform", 12, 4, (0, 3, 6, 9, 12)),
        ("uniform", 12, 6, (0, 2, 4, 6, 8, 10, 12)),
        ("uniform", 6, 6, (0, 1, 2, 3, 4, 5, 6)),
        ("uniform", 12, 5, (0, 2, 5, 7, 10, 12)),  # of 2.4, 4.8, 7.2, 9.6
        ("uniform", 22, 4, (0, 6, 11, 17, 22)),  # of 5.5 and 16.5
        ("uniform", 7, 6, (0, 1, 2, 4, 5, 6, 7)),
        ("last", 12, 4, (0, 9, 10, 11, 12)),
        ("first", 12, 4, (0, 1, 2, 3, 4)),
        ("last", 4, 4, (0, 1, 2, 3, 4)),
        (" Uniform ", 6, 3, (0, 2, 4, 6)),
        ("0,2,4,6", 6, 3, (0, 2, 4, 6)),
        ("1, 1, 6, 6", 6, 3, (1, 1, 6, 6)),
        ("0,1,1,2,2", 2, 4, (0, 1, 1, 2, 2)),
    ],
)
def test_a_spec_becomes_the_states_it_names(spec, teacher_layers, student_layers, expected):
    assert parse_layer_map(spec, teacher_layers, student_layers) == expected


def test_a_student_layer_imitates_the_attention_that_made_its_state():
    assert attention_layers((0, 3, 6, 9, 12)) == (2, 5, 8, 11)  # the published i·k + k - 1 for k = 3
    assert attention_layers((1, 1, 6, 6)) == (0, 5, 5)


@pytest.mark.parametrize(
    ("spec", "teacher_layers", "student_layers", "message"),
    [
        ("0,4,9", 12, 4, r"layer map \[0, 4, 9\] has 3 entries; a 4-layer student needs 5 \(embeddings \+ 4 layers\)"),
        ("uniform", 2, 4, "the student has 4 layers, the teacher 2, .*a list with repeats"),
        ("last", 2, 4, "the student has 4 layers, the teacher 2"),
        ("first", 2, 4, "the student has 4 layers, the teacher 2"),
        ("0,2,13", 12, 2, r"names teacher state 13; a 12-layer teacher has states 0\.\.12"),
        ("0,6,3", 12, 2, "goes back"),
        ("0,0,3", 12, 2, "no attention scores"),
        ("middle", 12, 2, "may be uniform, last, first or a list"),
        ("0,-1,3", 12, 2, "is not known"),
        ("0,,3", 12, 2, "is not known"),
        ("", 12, 2, "is not known"),
        ("0,²,3", 12, 2, "is not known"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_what_would(spec, teacher_layers, student_layers, message):
    with pytest.raises(ConfigError, match=message):
        parse_layer_map(spec, teacher_layers, student_layers)


def test_layers_with_windows_are_those_whose_rows_they_do_not_span():
    special = dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 2)
    config = tiny_config("modernbert", num_hidden_layers=7, local_attention=8, global_attn_every_n_layers=3, **special)
    assert full_attention_layers(config, 5) == (1, 2, 3, 4, 5, 6, 7)  # 4 tokens on either side
    assert full_attention_layers(config, 6) == (1, 4, 7)
    assert full_attention_layers(tiny_config(), 512) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("full", "student_layers", "expected"),
    [
        ((1, 4, 7, 10, 13, 16, 19, 22), 4, (0, 4, 10, 16, 22)),
        ((1, 4, 7, 10, 13, 16, 19, 22), 3, (0, 7, 13, 22)),  # of the eight: 2.67, 5.33, 8
        ((1, 22), 3, (0, 7, 15, 22)),  # too few: the probe refuses those with windows
        ((11, 12, 22), 2, (0, 11, 22)),
        (None, 2, (0, 11, 22)),
    ],
)
def test_a_uniform_map_keeps_to_layers_with_full_attention_where_there_are_enough(full, student_layers, expected):
    assert parse_layer_map("uniform", 22, student_layers, full) == expected
    assert parse_layer_map("last", 22, student_layers, full) == parse_layer_map("last", 22, student_layers)
