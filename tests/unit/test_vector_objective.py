"""The losses of sentence vectors by values that are computed by hand, and what ranks and fillers do to them."""

from __future__ import annotations

import pytest
import torch

from tinybert_ds.losses.vectors import vector_angle, vector_distance, vector_relations
from tinybert_ds.models.sentence.head import SentenceHead
from tinybert_ds.models.sentence.modules import Normalise, SentenceModules
from tinybert_ds.types import Batch, Counts, EncoderOutput
from tinybert_ds.vector_objective import VectorObjective, VectorWeights

STUDENT = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
TEACHER = torch.tensor([[1.0, 0.0], [1.0, 0.0]])


def unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_the_distance_is_the_mean_of_the_squared_ones():
    assert vector_distance(STUDENT, TEACHER, denominator=2).item() == pytest.approx((4 + 5) / 2)


def test_the_angle_does_not_see_the_length():
    assert vector_angle(STUDENT, TEACHER, denominator=2).item() == pytest.approx((0 + 1) / 2)


def test_relations_compare_all_pairs_of_rows():
    # The student's rows are at right angles, the teacher's the same: two entries of four are off by 1.
    value = vector_relations(STUDENT, TEACHER, unit(STUDENT), unit(TEACHER), denominator=2)
    assert value.item() == pytest.approx(2 / 4)


def test_the_gradient_of_relations_is_that_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    whole = (unit(student) @ unit(student).T - unit(teacher) @ unit(teacher).T).square().mean()
    (expected,) = torch.autograd.grad(3 * whole, student)
    value = vector_relations(student, teacher, unit(student.detach()), unit(teacher), denominator=5)
    (found,) = torch.autograd.grad(3 * value, student)
    assert value.item() == pytest.approx(whole.item())
    torch.testing.assert_close(found, expected)


def batch_of(rows, *, of=None, filler=False):
    count = len(rows)
    ids = torch.full((count,), -1) if filler else torch.arange(count)
    number = float("inf") if filler else float(of or count)
    ones = torch.ones(count, 1, dtype=torch.int64)
    return Batch(ones, ones, 0 * ones, None, ids, Counts(number, number, number))


def output(vectors):
    """Return states of one token a row, whose pooled vector they are."""
    return EncoderOutput((vectors[:, None],), (), (), (), None)


def taught(vectors):
    return EncoderOutput((), (), (), (), vectors)


def objective(gather=None, layers=(), **weights):
    given = {"l2": 0.0, **weights}
    return VectorObjective(
        SentenceHead(SentenceModules(("mean",), layers)), weights=VectorWeights(**given), gather=gather
    )


def test_terms_are_weighed_and_those_without_a_weight_left_out():
    terms = objective(l2=0.5, relation=4.0)(output(STUDENT), taught(TEACHER), batch_of(STUDENT))
    assert sorted(terms) == ["l2_loss", "logits", "loss", "relation_loss"]
    assert terms["loss"].item() == pytest.approx(0.5 * 4.5 + 4 * 0.5)
    assert terms["l2_loss"].item() == pytest.approx(4.5)


def test_distances_are_taken_before_the_length_is_made_1_and_the_vectors_after():
    terms = objective(l2=1.0, layers=(Normalise(),))(output(STUDENT), taught(TEACHER), batch_of(STUDENT))
    assert terms["loss"].item() == pytest.approx(4.5)
    torch.testing.assert_close(terms["logits"], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_without_a_teacher_there_are_the_vectors_alone():
    assert list(objective(l2=1.0)(output(STUDENT), None, batch_of(STUDENT))) == ["logits"]


def test_a_filler_row_is_in_nobodys_relations_and_adds_nothing():
    others = torch.tensor([[1.0, 1.0]])
    everywhere = []

    def gather(rows):
        everywhere.append(rows)
        return torch.cat(everywhere)

    shared = objective(gather, relation=1.0, cosine=1.0, l2=1.0)
    filler = others.clone().requires_grad_()
    nothing = shared(output(filler), taught(others), batch_of(others, filler=True))
    nothing["loss"].backward()
    assert nothing["loss"].item() == 0
    assert torch.equal(filler.grad, torch.zeros_like(filler))
    with_filler = shared(output(STUDENT), taught(TEACHER), batch_of(STUDENT))["relation_loss"]
    alone = objective(relation=1.0)(output(STUDENT), taught(TEACHER), batch_of(STUDENT))["relation_loss"]
    assert with_filler.item() == alone.item()


def test_two_ranks_have_the_loss_and_the_gradients_of_one():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    weights = {"l2": 1.0, "cosine": 2.0, "relation": 3.0}
    leaf = student.clone().requires_grad_()
    whole = objective(**weights)(output(leaf), taught(teacher), batch_of(student))["loss"]
    whole.backward()
    all_rows = torch.cat([unit(student), unit(teacher), torch.ones(5, 1)], dim=1)
    parts, gradients = [], []
    for rows in (slice(0, 3), slice(3, 5)):
        own = student[rows].clone().requires_grad_()
        rank = objective(lambda _: all_rows, **weights)
        loss = rank(output(own), taught(teacher[rows]), batch_of(own, of=5 / 2))["loss"] / 2
        loss.backward()
        parts.append(loss.item())
        gradients.append(own.grad)
    assert sum(parts) == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat(gradients), leaf.grad)
