"""From token states to vectors, with values that are computed by hand."""

from __future__ import annotations

import pytest
import torch

from tinybert_ds.models.sentence.head import SentenceHead, pool
from tinybert_ds.models.sentence.modules import Dense, Normalise, SentenceModules

STATES = torch.tensor([[[1.0, 8.0], [3.0, -2.0], [100.0, 100.0]], [[2.0, 0.0], [4.0, 6.0], [0.0, 3.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cls", [[1.0, 8.0], [2.0, 0.0]]),
        ("max", [[3.0, 8.0], [4.0, 6.0]]),
        ("mean", [[2.0, 3.0], [2.0, 3.0]]),
        ("mean_sqrt_len_tokens", [[4 / 2**0.5, 6 / 2**0.5], [6 / 3**0.5, 9 / 3**0.5]]),
        ("weightedmean", [[7 / 3, 4 / 3], [10 / 6, 21 / 6]]),
        ("lasttoken", [[3.0, -2.0], [0.0, 3.0]]),
    ],
)
def test_each_pooling_looks_at_real_tokens_alone(name, expected):
    torch.testing.assert_close(pool(STATES, MASK, (name,)), torch.tensor(expected))


def test_several_poolings_stand_side_by_side_in_their_order():
    both = pool(STATES, MASK, ("max", "cls"))
    torch.testing.assert_close(both, torch.tensor([[3.0, 8.0, 1.0, 8.0], [4.0, 6.0, 2.0, 0.0]]))


def test_half_precision_states_are_summed_up_in_float32():
    states = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    vectors = pool(states, torch.ones(1, 4096, dtype=torch.int64), ("mean",))
    assert vectors.dtype == torch.float32
    assert vectors.item() == 1.0


def head(*layers):
    return SentenceHead(SentenceModules(("mean",), layers))


def test_layers_follow_each_other_and_the_last_gives_the_length():
    dense = Dense(torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0, -5.0]), "ReLU")
    made = head(dense, Normalise())
    torch.testing.assert_close(made.unfinished(STATES[:1], MASK[:1]), torch.tensor([[3.0, 0.0, 0.0]]))
    torch.testing.assert_close(made(STATES[:1], MASK[:1]), torch.tensor([[1.0, 0.0, 0.0]]))


def test_a_normalisation_in_the_middle_is_not_left_out_of_the_unfinished_vectors():
    doubled = Dense(2 * torch.eye(2), None)
    made = head(Normalise(), doubled)
    unit = torch.tensor([[2.0, 3.0]]) / 13**0.5
    torch.testing.assert_close(made.unfinished(STATES[:1], MASK[:1]), 2 * unit)
    torch.testing.assert_close(made(STATES[:1], MASK[:1]), 2 * unit)
