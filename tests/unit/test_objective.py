"""The objectives: which terms they sum, with which tensors, divided by what."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from tests.support.models import random_batch
from tinybert_ds.losses import attention_score_loss, gradients_only, hidden_state_loss, relation_loss
from tinybert_ds.objective import IntermediateObjective, JointObjective, LossWeights, PredictionObjective, Relations
from tinybert_ds.targets import SCORES
from tinybert_ds.types import Counts, EncoderOutput


def output(seed, *, states=3, layers=2, hidden=6, heads=2, head_dim=3, logits=None, grad=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).requires_grad_(grad)

    return EncoderOutput(
        hidden_states=tuple(draw(2, 8, hidden) for _ in range(states)),
        queries=tuple(draw(2, heads, 8, head_dim) for _ in range(layers)),
        keys=tuple(draw(2, heads, 8, head_dim) for _ in range(layers)),
        scalings=(head_dim**-0.5,) * layers,
        logits=logits,
        values=tuple(draw(2, heads, 8, head_dim) for _ in range(layers)),
    )


@pytest.fixture
def batch():
    return random_batch((8, 5))


def test_the_intermediate_loss_is_the_sum_of_every_layers_and_every_states_term(batch):
    student, teacher = output(1, grad=True), output(2, hidden=10, head_dim=5)
    objective = IntermediateObjective(2, 6, 10, projection="per_layer", padding="valid")
    terms = objective(student, teacher, batch)
    expected = []
    for layer in range(2):
        expected.append(
            attention_score_loss(
                student.queries[layer],
                student.keys[layer],
                teacher.queries[layer],
                teacher.keys[layer],
                batch.attention_mask,
                student_scaling=student.scalings[layer],
                teacher_scaling=teacher.scalings[layer],
                backend="reference",
            )
        )
        assert terms[f"attention_loss/layer_{layer + 1}"] == pytest.approx(expected[-1].item(), rel=1e-5)
    for state, projection in enumerate(objective.projections):
        expected.append(
            hidden_state_loss(
                student.hidden_states[state],
                teacher.hidden_states[state],
                projection.weight,
                projection.bias,
                batch.attention_mask,
                backend="reference",
            )
        )
        assert terms[f"hidden_loss/state_{state}"] == pytest.approx(expected[-1].item(), rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(float(sum(expected)), rel=1e-5)
    assert float(terms["attention_loss"]) == pytest.approx(float(sum(expected[:2])), rel=1e-5)
    assert float(terms["hidden_loss"]) == pytest.approx(float(sum(expected[2:])), rel=1e-5)


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("form", ["scores", "kl"])
def test_relations_take_the_place_of_attention_scores_whatever_the_heads(form, padding, batch):
    if padding == "reference":
        batch = batch._replace(counts=Counts(rows=2, tokens=16, token_pairs=128))
    student, teacher = output(1, layers=1, grad=True), output(2, layers=1, heads=3, head_dim=4)
    relations = Relations(layers=(1,), heads=6, form=form, keys=0.0, values=3.0)
    weights = LossWeights(attention=2.0, hidden=0.0, embedding=0.0)
    objective = IntermediateObjective(
        2, 6, 12, projection="none", padding=padding, weights=weights, relations=relations
    )
    terms = objective(student, teacher, batch)
    queries, values = (
        relation_loss(
            getattr(student, name)[0],
            getattr(teacher, name)[0],
            batch.attention_mask,
            relation_heads=6,
            form=form,
            padding=padding,
            backend="reference",
        ).item()
        for name in ("queries", "values")
    )
    assert set(terms) == {"loss", "relation_loss", "relation_loss/layer_2"}
    assert float(terms["relation_loss/layer_2"]) == pytest.approx(queries + 3 * values, rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(2 * (queries + 3 * values), rel=1e-5)
    terms["loss"].backward()
    assert student.queries[0].grad is not None
    assert student.keys[0].grad is None


def test_relations_stand_beside_hidden_states_and_are_left_out_with_the_weight_of_attention(batch):
    relations = Relations(layers=(1,), heads=2)
    named = {}
    for attention in (0.0, 1.0):
        objective = IntermediateObjective(
            2, 6, 10, projection="shared", padding="valid", weights=LossWeights(attention), relations=relations
        )
        named[attention] = objective(output(1), output(2, hidden=10), batch)
    assert set(named[1.0]) - set(named[0.0]) == {"relation_loss", "relation_loss/layer_2"}
    assert float(named[1.0]["loss"]) > float(named[0.0]["hidden_loss"])


def test_the_counts_of_the_batch_are_the_denominators(batch):
    student, teacher = output(1), output(2, hidden=10)
    objective = IntermediateObjective(2, 6, 10, projection="shared", padding="valid")
    terms = objective(student, teacher, batch)
    doubled = batch._replace(counts=Counts(*(2 * count for count in batch.counts)))
    assert float(objective(student, teacher, doubled)["loss"]) == pytest.approx(float(terms["loss"]) / 2, rel=1e-6)


def test_a_filler_row_gives_no_loss_and_no_gradient(batch):
    student, teacher = output(1, grad=True), output(2, hidden=10)
    objective = IntermediateObjective(2, 6, 10, projection="per_layer", padding="valid")
    filler = batch._replace(counts=Counts(math.inf, math.inf, math.inf))
    loss = objective(student, teacher, filler)["loss"]
    loss.backward()
    assert loss == 0
    tensors = [*student.hidden_states, *student.queries, *student.keys, *objective.parameters()]
    assert all(torch.count_nonzero(tensor.grad) == 0 for tensor in tensors)


@pytest.mark.parametrize(("projection", "count"), [("per_layer", 3), ("shared", 1), ("none", 0)])
def test_projections_are_one_for_each_state_one_for_all_or_none(batch, projection, count):
    objective = IntermediateObjective(2, 6, 6, projection=projection, padding="valid")
    assert len(objective.projections) == count
    assert objective(output(1), output(2), batch)["loss"] > 0


def test_gradients_do_not_depend_on_whether_the_value_is_needed(batch):
    gradients = []
    for switch in (nullcontext(), gradients_only()):
        student = output(1, grad=True)
        objective = IntermediateObjective(2, 6, 6, projection="none", padding="valid")
        with switch:
            objective(student, output(2), batch)["loss"].backward()
        gradients.append([tensor.grad for tensor in (*student.queries, *student.keys, *student.hidden_states)])
    for value, no_value in zip(*gradients, strict=True):
        torch.testing.assert_close(value, no_value)


def test_predictions_are_compared_class_by_class_whatever_order_the_teacher_has(batch):
    student_logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    teacher_logits = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    student = output(1, logits=torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    batch = batch._replace(labels=torch.tensor([0, 1]))
    straight = PredictionObjective(teacher_columns=[0, 1])(student, output(2, logits=teacher_logits), batch)
    swapped = PredictionObjective(teacher_columns=[1, 0])(student, output(2, logits=teacher_logits.flip(1)), batch)
    crossed = PredictionObjective()(student, output(2, logits=teacher_logits.flip(1)), batch)
    assert float(straight["loss"]) == pytest.approx(float(swapped["loss"]))
    assert crossed["loss"] > straight["loss"]
    # -(softmax(t) · log_softmax(s)) averaged over rows and classes; uniform student: log 2 / 2
    uniform = PredictionObjective()(output(1, logits=student_logits), output(2, logits=teacher_logits), batch)
    assert float(uniform["loss"]) == pytest.approx(math.log(2) / 2)


def test_without_labels_the_prediction_objective_gives_logits_alone(batch):
    logits = torch.zeros(2, 2)
    assert list(PredictionObjective()(output(1, logits=logits), None, batch._replace(labels=None))) == ["logits"]


def test_regression_learns_from_the_gold_scores_or_from_the_teachers(batch):
    batch = batch._replace(labels=torch.tensor([1.0, 3.0]))
    student, teacher = output(1, logits=torch.tensor([[2.0], [5.0]])), output(2, logits=torch.tensor([[9.0], [6.0]]))
    gold = PredictionObjective(target=SCORES, weight=0.0, label_weight=1.0)(student, None, batch)
    assert float(gold["loss"]) == pytest.approx((1 + 4) / 2)
    terms = PredictionObjective(target=SCORES, teacher_columns=[0])(student, teacher, batch)
    assert float(terms["loss"]) == pytest.approx((49 + 1) / 2)


@pytest.mark.parametrize("zero", ["attention", "hidden", "embedding"])
def test_a_loss_of_weight_0_is_not_computed_and_the_others_count_by_their_weights(batch, zero):
    full_student, full_teacher = output(1), output(2, hidden=10)
    expected = IntermediateObjective(2, 6, 10, projection="per_layer", padding="valid")
    whole = expected(full_student, full_teacher, batch)
    weights = LossWeights(**{"attention": 2.0, "hidden": 3.0, "embedding": 5.0, zero: 0.0})
    objective = IntermediateObjective(2, 6, 10, projection="per_layer", padding="valid", weights=weights)
    objective.load_state_dict(expected.state_dict())
    states, layers = objective.states, objective.attention_layers
    student, teacher = (
        model._replace(
            hidden_states=tuple(model.hidden_states[state] for state in states),
            queries=tuple(model.queries[layer] for layer in layers),
            keys=tuple(model.keys[layer] for layer in layers),
        )
        for model in (full_student, full_teacher)
    )
    terms = objective(student, teacher, batch)
    attention = sum(float(whole[f"attention_loss/layer_{layer}"]) for layer in (1, 2))
    hidden = sum(float(whole[f"hidden_loss/state_{state}"]) for state in (1, 2))
    embedding = float(whole["hidden_loss/state_0"])
    loss = weights.attention * attention + weights.hidden * hidden + weights.embedding * embedding
    assert float(terms["loss"]) == pytest.approx(loss, rel=1e-5)
    assert ("attention_loss" in terms) == (zero != "attention")
    assert ("hidden_loss/state_0" in terms) == (zero != "embedding")
    assert ("hidden_loss/state_2" in terms) == (zero != "hidden")
    trained = [projection.weight.requires_grad for projection in objective.projections]
    assert (
        trained
        == {
            "attention": [True, True, True],
            "hidden": [True, False, False],
            "embedding": [False, True, True],
        }[zero]
    )


def test_gold_labels_beside_the_teachers_add_up(batch):
    batch = batch._replace(labels=torch.tensor([1, 0]))
    student, teacher = output(1, logits=torch.tensor([[0.0, 2.0], [0.0, 0.0]])), output(2, logits=torch.zeros(2, 2))
    # softened by 2, the student's rows are (0, 1) and (0, 0); the teacher's are uniform
    soft = (math.log(1 + math.e) - 0.5 + math.log(2)) / 4
    hard = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    plain = PredictionObjective(temperature=2.0)(student, teacher, batch)
    assert float(plain["loss"]) == pytest.approx(soft)
    assert "label_loss" not in plain
    both = PredictionObjective(temperature=2.0, weight=0.5, label_weight=3.0)
    terms = both(student, teacher, batch)
    assert float(terms["prediction_loss"]) == pytest.approx(soft)
    assert float(terms["label_loss"]) == pytest.approx(hard)
    assert float(terms["loss"]) == pytest.approx(0.5 * soft + 3 * hard)


def test_labels_alone_give_cross_entropy_over_the_global_rows(batch):
    batch = batch._replace(labels=torch.tensor([0, 1]), counts=Counts(4.0, 0.0, 0.0))
    terms = PredictionObjective(weight=0, label_weight=1)(output(1, logits=torch.zeros(2, 2)), None, batch)
    assert float(terms["loss"]) == pytest.approx(2 * math.log(2) / 4)


def test_the_other_forms_of_the_predictions_loss_are_what_their_names_say(batch):
    batch = batch._replace(labels=torch.tensor([1, 0]))
    student, teacher = output(1, logits=torch.tensor([[0.0, 2.0], [0.0, 0.0]])), output(2, logits=torch.zeros(2, 2))
    squares = PredictionObjective(form="mse")(student, teacher, batch)
    assert float(squares["prediction_loss"]) == pytest.approx(4 / 4)  # of four logits one is off, by 2
    # softened by 2 the student's first row is (0, 1): KL of one half each from it, times 2², over two rows
    divergence = -math.log(2) - (math.log(1 / (1 + math.e)) + math.log(math.e / (1 + math.e))) / 2
    found = PredictionObjective(form="kl", temperature=2.0)(student, teacher, batch)
    assert float(found["prediction_loss"]) == pytest.approx(4 * divergence / 2)


@pytest.mark.parametrize("form", ["cross_entropy", "mse", "kl"])
def test_mixing_divides_each_row_by_the_teachers_confidence_in_its_label(form, batch):
    batch = batch._replace(labels=torch.tensor([1, 0]))
    student = output(1, logits=torch.tensor([[0.5, 2.0], [0.3, -0.4]]))
    # the teacher's outputs are in another order: it gives row 1's label 0.2, row 2's 0.9
    certain = output(2, logits=torch.log(torch.tensor([[0.2, 0.8], [0.1, 0.9]])))
    mixed = PredictionObjective(form=form, label_weight=3.0, mixes=True, teacher_columns=[1, 0])
    terms = mixed(student, certain, batch)
    alone = PredictionObjective(form=form, label_weight=3.0, teacher_columns=[1, 0])
    expected = [0.0, 0.0]
    for row, trust in enumerate((0.2, 0.9)):
        one = batch._replace(labels=batch.labels[row : row + 1], counts=Counts(2.0, 0.0, 0.0))
        rows = slice(row, row + 1)
        own = alone(student._replace(logits=student.logits[rows]), certain._replace(logits=certain.logits[rows]), one)
        expected[0] += trust * float(own["prediction_loss"])
        expected[1] += (1 - trust) * float(own["label_loss"])
    assert float(terms["prediction_loss"]) == pytest.approx(expected[0], rel=1e-5)
    assert float(terms["label_loss"]) == pytest.approx(expected[1], rel=1e-5)
    assert float(terms["loss"]) == pytest.approx(expected[0] + 3 * expected[1], rel=1e-5)


def test_a_joint_objective_is_the_sum_of_both_and_without_a_teacher_shows_the_logits_alone(batch):
    batch = batch._replace(labels=torch.tensor([1, 0]))
    student, teacher = output(1, logits=torch.randn(2, 2)), output(2, hidden=10, logits=torch.randn(2, 2))
    sizes = {"projection": "per_layer", "padding": "valid", "weights": LossWeights(attention=2.0)}
    predictions = PredictionObjective(label_weight=0.5)
    joint = JointObjective(2, 6, 10, predictions=predictions, **sizes)
    layers = IntermediateObjective(2, 6, 10, **sizes)
    layers.projections.load_state_dict(joint.projections.state_dict())
    terms, expected = joint(student, teacher, batch), layers(student, teacher, batch)
    predicted = predictions(student, teacher, batch)
    assert float(terms["loss"]) == pytest.approx(float(expected["loss"] + predicted["loss"]), rel=1e-6)
    assert set(terms) == set(expected) | set(predicted)
    assert set(joint(student, None, batch._replace(labels=None))) == {"logits"}


def test_variances_divide_terms_in_the_sum_alone(batch):
    student, teacher = output(1), output(2, hidden=10)
    names = ["attention_loss/layer_1", "attention_loss/layer_2", *(f"hidden_loss/state_{state}" for state in range(3))]
    variances = {name: 0.5 + place for place, name in enumerate(names)}
    objective = IntermediateObjective(
        2, 6, 10, projection="shared", padding="valid", weights=LossWeights(hidden=3.0), variances=variances
    )
    terms = objective(student, teacher, batch)
    weights = [1.0, 1.0, 1.0, 3.0, 3.0]
    expected = sum(w * float(terms[name]) / variances[name] for w, name in zip(weights, names, strict=True))
    assert objective.term_names == names
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)
