"""Low-rank factors of heads, and the choice of heads and neurons."""

from __future__ import annotations

import pytest
import torch

from tinybert_ds.models.inherit.factors import (
    away_from_the_mean,
    choose_heads,
    choose_neurons,
    leading_basis,
    score_factors,
    square_root,
    value_factors,
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_leading_basis_is_the_largest_axes_with_signs_that_do_not_depend_on_the_solver():
    moments = torch.diag(torch.tensor([1.0, 9.0, 4.0], dtype=torch.float64))
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(leading_basis(moments, 2), expected)


def test_the_last_direction_of_a_basis_becomes_the_mean_and_the_span_stays():
    basis = torch.linalg.qr(drawn(6, 4)).Q
    turned = away_from_the_mean(basis)
    torch.testing.assert_close(turned @ turned.T, basis @ basis.T)
    torch.testing.assert_close(turned.T @ turned, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(turned.sum(1) / 2, basis[:, -1])  # (1, 1, 1, 1) / √4 of the coordinates


def test_scores_of_rank_two_survive_in_heads_of_size_two():
    query, key = drawn(50, 2) @ drawn(2, 8, seed=1), drawn(50, 8, seed=2)
    left, right = score_factors(query.T @ query, key.T @ key, 2)
    torch.testing.assert_close((query @ left) @ (key @ right).T / 2**0.5, query @ key.T / 8**0.5)


def test_scores_keep_their_leading_direction_as_queries_and_keys_are_distributed():
    # The scores are 2·3·a·b from the first dimension and 10·0.01·c·d from the second: the first matters more.
    query_moments = torch.diag(torch.tensor([4.0, 100.0], dtype=torch.float64))
    key_moments = torch.diag(torch.tensor([9.0, 1e-4], dtype=torch.float64))
    left, right = score_factors(query_moments, key_moments, 1)
    torch.testing.assert_close(left @ right.T, torch.tensor([[0.5**0.5, 0.0], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("size", [4, 6])
def test_larger_heads_keep_the_scores_whole(size):
    query, key = drawn(9, 4), drawn(9, 4, seed=1)
    left, right = score_factors(query.T @ query, key.T @ key, size)
    torch.testing.assert_close((query @ left) @ (key @ right).T / size**0.5, query @ key.T / 4**0.5)


def test_values_keep_what_the_output_matrix_reads():
    values, outgoing = drawn(40, 6), torch.zeros(6, 5, dtype=torch.float64)
    outgoing[2, 3] = 7.0  # reads the third value alone
    factor = value_factors(values.T @ values, outgoing, 1)
    kept = values @ factor
    share = torch.corrcoef(torch.stack([kept[:, 0], values[:, 2]]))[0, 1].abs()
    assert float(share) == pytest.approx(1)


def test_a_second_head_of_one_teacher_head_has_the_next_directions():
    values, outgoing = drawn(40, 4), torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    moments = values.T @ values
    both = torch.cat([value_factors(moments, outgoing, 2), value_factors(moments, outgoing, 2, skipped=2)], 1)
    assert torch.linalg.matrix_rank(both) == 4


def test_fewer_heads_are_those_of_the_largest_contribution_in_the_teachers_order():
    assert choose_heads(torch.tensor([1.0, 5.0, 2.0, 4.0]), 2) == [(1, 0), (3, 0)]


def test_more_heads_take_all_and_the_largest_again():
    assert choose_heads(torch.tensor([1.0, 5.0, 2.0]), 5) == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]


def test_neurons_are_the_most_important_in_ascending_order():
    importance = torch.tensor([3.0, 1.0, 9.0, 2.0])
    assert choose_neurons(importance, 2).tolist() == [0, 2]
    assert choose_neurons(importance, 7).tolist() == [0, 1, 2, 3]


def test_the_root_of_a_singular_matrix_has_a_pseudo_inverse():
    moments = torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64))
    halves = square_root(moments)
    torch.testing.assert_close(halves.root, torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)))
    torch.testing.assert_close(halves.inverse, torch.diag(torch.tensor([0.5, 0.0], dtype=torch.float64)))
