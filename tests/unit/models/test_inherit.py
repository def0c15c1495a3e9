"""Students started in closed form: what they must reproduce, for every architecture of the table."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.support.inheriting import inherit
from tests.support.models import random_batch, tiny_config, tiny_model
from tinybert_ds.errors import ConfigError, ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.inherit import fit, inherit_all, sweep
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.layers import ARCHITECTURES, embed, encoder_layers, first_state, run_layer
from tinybert_ds.models.inherit.sweep import Pupil
from tinybert_ds.objective import IntermediateObjective

KNOWN = tuple(ARCHITECTURES)


def text(count=6, *, seed=0, pad_id=0):
    """Return blocks of eight rows with lengths from 2 to 24."""
    return [random_batch([24, 2, 17, 9, 21, 13, 24, 5], seed=seed + number, pad_id=pad_id) for number in range(count)]


def states(model, batch):
    depth = model.config.num_hidden_layers
    encoder = CapturingEncoder(model, states=range(depth + 1), attention_layers=range(depth), logits=False)
    with torch.no_grad():
        return encoder(batch)


def lively(model, *, seed=1):
    """Give gains, biases and heads values that nothing would guess."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


@pytest.mark.parametrize("model_type", KNOWN)
def test_the_layers_seen_through_the_table_are_the_models_own(model_type):
    model = lively(tiny_model(model_type))
    batch = random_batch([24, 2, 17], pad_id=model.config.pad_token_id)
    expected, mask = states(model, batch).hidden_states, batch.attention_mask.bool()
    with torch.no_grad():
        state = first_state(model, embed(model, batch))
        for depth, layer in enumerate([None, *encoder_layers(model)]):
            state = state if layer is None else run_layer(layer, state, mask)
            torch.testing.assert_close(state, expected[depth][mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", KNOWN)
def test_a_student_of_its_teachers_shape_reproduces_it_with_its_head(model_type, tmp_path):
    labels = ["bad", "good", "so so"]
    teacher = lively(tiny_model(model_type, labels=labels))
    student = tiny_model(model_type, labels=labels, seed=5)
    padding = teacher.config.pad_token_id
    inheritance = inherit(teacher, student, (0, 1, 2, 3, 4), Blocks(text(pad_id=padding), tmp_path))
    batch = random_batch([24, 3, 11], seed=99, pad_id=padding)  # which it has not seen
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits, rtol=1e-4, atol=1e-4)
    mask = batch.attention_mask.bool()
    for own, expected in zip(states(student, batch).hidden_states, states(teacher, batch).hidden_states, strict=True):
        torch.testing.assert_close(own[mask], expected[mask], rtol=1e-4, atol=1e-4)
    assert min(inheritance.states) > 1 - 1e-6
    assert inheritance.head is not None
    assert inheritance.head > 1 - 1e-6
    torch.testing.assert_close(inheritance.projections["2.weight"], torch.eye(48), rtol=0, atol=1e-3)


def doubled(narrow):
    """Return a teacher of twice the width whose states are those of a narrow model twice over: [x, x]."""
    wide = tiny_model(hidden_size=2 * narrow.config.hidden_size, intermediate_size=narrow.config.intermediate_size)
    target = wide.state_dict()
    for name, value in narrow.state_dict().items():
        if value.is_floating_point() and "pooler" not in name:
            target[name].copy_(_doubled(name, value, narrow.config.num_attention_heads))
    return wide


def _doubled(name, value, heads):
    if ".self." in name:  # heads twice as large, the new half of each 0; √2 for the larger root of their size
        by_head = value.unflatten(0, (heads, -1)) * (2**0.5 if "query" in name else 1.0)
        rows = torch.cat([by_head, torch.zeros_like(by_head)], 1).flatten(0, 1)
        return rows if rows.dim() == 1 else torch.cat([rows, rows], 1) / 2
    if "attention.output.dense.weight" in name:
        by_head = value.unflatten(1, (heads, -1))
        return torch.cat([by_head, torch.zeros_like(by_head)], 2).flatten(1, 2).repeat(2, 1)
    if "intermediate.dense" in name:
        return value if value.dim() == 1 else torch.cat([value, value], 1) / 2
    return torch.cat([value, value], -1 if "embeddings" in name and value.dim() == 2 else 0)


def test_a_teacher_whose_states_live_in_a_subspace_is_reproduced_by_a_student_of_its_dimension(tmp_path):
    narrow = tiny_model(hidden_size=24, intermediate_size=32, num_hidden_layers=2, scale=3.0)
    teacher = doubled(narrow)
    batch = random_batch([24, 3, 11], seed=99)
    mask = batch.attention_mask.bool()
    expected = states(teacher, batch)
    twice = torch.cat([states(narrow, batch).hidden_states[2]] * 2, -1)
    torch.testing.assert_close(expected.hidden_states[2][mask], twice[mask], rtol=1e-4, atol=1e-4)

    student = tiny_model(hidden_size=24, intermediate_size=32, num_hidden_layers=2, seed=5)
    inheritance = inherit(teacher, student, (0, 1, 2), Blocks(text(20), tmp_path), ridge=1e-12)
    found = states(student, batch)
    for state in range(3):
        weight, bias = (inheritance.projections[f"{state}.{name}"] for name in ("weight", "bias"))
        projected = found.hidden_states[state] @ weight.T + bias
        torch.testing.assert_close(projected[mask], expected.hidden_states[state][mask], rtol=1e-3, atol=1e-3)
    for layer in range(2):
        scores = [
            out.queries[layer] @ out.keys[layer].transpose(-1, -2) * out.scalings[layer] for out in (found, expected)
        ]
        torch.testing.assert_close(scores[0][0], scores[1][0], rtol=1e-3, atol=1e-3)


SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}


def first_losses(teacher, student, layer_map, batch, projections=None):
    """Return (attention loss, hidden loss) of a student before any step."""
    objective = IntermediateObjective(
        len(layer_map) - 1,
        student.config.hidden_size,
        teacher.config.hidden_size,
        projection="per_layer",
        padding="valid",
    )
    if projections is not None:
        objective.projections.load_state_dict(projections)
    layers = [state - 1 for state in layer_map[1:]]
    asked = CapturingEncoder(teacher, states=layer_map, attention_layers=layers, logits=False)
    own = CapturingEncoder(
        student, states=range(len(layer_map)), attention_layers=range(len(layer_map) - 1), logits=False
    )
    with torch.no_grad():
        terms = objective(own(batch), asked(batch), batch)
    return float(terms["attention_loss"]), float(terms["hidden_loss"])


@pytest.mark.parametrize("model_type", KNOWN)
def test_a_narrower_and_shallower_student_starts_nearer_to_its_teacher_than_a_random_one(model_type, tmp_path):
    teacher = lively(tiny_model(model_type))
    changes = {"embedding_size": 16} if model_type == "electra" else {}
    student = tiny_model(model_type, **SMALL, **changes, seed=5, scale=1.0)
    padding = teacher.config.pad_token_id
    batch = random_batch([24, 3, 11], seed=99, pad_id=padding)
    before = first_losses(teacher, student, (0, 2, 4), batch)
    inheritance = inherit(teacher, student, (0, 2, 4), Blocks(text(12, pad_id=padding), tmp_path))
    after = first_losses(teacher, student, (0, 2, 4), batch, inheritance.projections)
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.6 * before[1]


def test_a_student_of_its_teachers_width_starts_from_copied_layers_and_is_better_than_they_are(tmp_path):
    teacher = lively(tiny_model())
    student = tiny_model(num_hidden_layers=2, seed=5)
    copied = tiny_model(num_hidden_layers=2, seed=5)
    copied.embeddings.load_state_dict(teacher.embeddings.state_dict())
    for own, source in enumerate((1, 3)):
        copied.encoder.layer[own].load_state_dict(teacher.encoder.layer[source].state_dict())
    inheritance = inherit(teacher, student, (0, 2, 4), Blocks(text(12), tmp_path))
    batch = random_batch([24, 3, 11], seed=99)
    expected = states(teacher, batch).hidden_states[4]

    def error(model):
        return float((states(model, batch).hidden_states[2] - expected)[batch.attention_mask.bool()].square().mean())

    assert error(student) < 0.7 * error(copied)
    assert len(inheritance.states) == 3


def test_fewer_heads_are_the_teachers_strongest(tmp_path):
    teacher = tiny_model()
    with torch.no_grad():
        for layer in teacher.encoder.layer:
            layer.attention.output.dense.weight[:, :24] *= 0.01  # of the heads 0 and 1
    student = tiny_model(num_attention_heads=2, **SMALL)
    inheritance = inherit(teacher, student, (0, 2, 4), Blocks(text(), tmp_path))
    assert [report.heads for report in inheritance.layers] == [(2, 3), (2, 3)]


def test_a_teacher_in_half_precision_gives_nearly_the_same_student(tmp_path):
    students = [tiny_model(**SMALL, seed=5) for _ in range(2)]
    losses = []
    for student, dtype in zip(students, (torch.float32, torch.bfloat16), strict=True):
        inheritance = inherit(tiny_model().to(dtype), student, (0, 2, 4), Blocks(text(12), tmp_path))
        batch = random_batch([24, 3, 11], seed=99)
        losses.append(first_losses(tiny_model(), student, (0, 2, 4), batch, inheritance.projections))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert students[1].dtype is torch.float32


def test_positions_go_to_where_the_other_architecture_counts_from(tmp_path):
    teacher = tiny_model("roberta")  # whose first token has row 2
    student = tiny_model("bert", num_hidden_layers=2, pad_token_id=1, max_position_embeddings=64)
    inherit(teacher, student, (0, 2, 4), Blocks(text(pad_id=1), tmp_path))
    expected = teacher.embeddings.position_embeddings.weight[2:66]
    torch.testing.assert_close(student.embeddings.position_embeddings.weight, expected)
    types = student.embeddings.token_type_embeddings.weight
    torch.testing.assert_close(types, teacher.embeddings.token_type_embeddings.weight[[0, 0]])


def test_a_student_without_token_types_reads_every_text_as_the_first_type(tmp_path):
    teacher, student = tiny_model("bert"), tiny_model("distilbert", num_hidden_layers=2)
    inherit(teacher, student, (0, 2, 4), Blocks(text(), tmp_path))
    expected = teacher.embeddings.position_embeddings.weight + teacher.embeddings.token_type_embeddings.weight[0]
    torch.testing.assert_close(student.embeddings.position_embeddings.weight, expected)


def test_a_classifier_takes_the_teachers_outputs_in_its_own_order(tmp_path):
    teacher = lively(tiny_model(labels=["bad", "good", "so so"]))
    student = tiny_model(labels=["good", "so so", "bad"], seed=5)
    inherit(teacher, student, (0, 1, 2, 3, 4), Blocks(text(), tmp_path), columns=[1, 2, 0])
    batch = random_batch([24, 3, 11], seed=99)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        expected = teacher(**inputs).logits[:, [1, 2, 0]]
        torch.testing.assert_close(student(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_narrow_student_of_a_fine_tuned_teacher_predicts_before_its_first_step(tmp_path):
    teacher = lively(tiny_model(labels=["bad", "good"]))
    student = tiny_model(labels=["bad", "good"], **SMALL, seed=5)
    inheritance = inherit(teacher, student, (0, 2, 4), Blocks(text(60), tmp_path))
    batch = random_batch([7, 12, 20, 9] * 50, seed=99)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        margins = [model(**inputs).logits.diff(dim=1)[:, 0] for model in (student, teacher)]
    assert float(torch.corrcoef(torch.stack(margins))[0, 1]) > 0.5
    assert inheritance.head is not None
    assert 0.3 < inheritance.head < 1


def tuned(model):
    """Return a model that has moved away from another, as fine-tuning moves it."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in moved.encoder.layer:
            for parameter in layer.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.std(unbiased=False), alpha=0.5)
    return moved


@pytest.fixture
def distilled(tmp_path):
    """Return a teacher and a student that has learnt from it."""
    teacher, student = lively(tiny_model()), tiny_model(**SMALL, seed=5)
    inherit(teacher, student, (0, 2, 4), Blocks(text(12), tmp_path))
    return teacher, lively(student, seed=2)


def test_a_heavy_prior_leaves_a_student_what_it_has_learnt(distilled, tmp_path):
    teacher, student = distilled
    batch = random_batch([24, 3, 11], seed=99)
    mask = batch.attention_mask.bool()
    before = states(student, batch)
    inherit(tuned(teacher), student, (0, 2, 4), Blocks(text(12), tmp_path), prior_weight=1e7)
    for own, expected in zip(states(student, batch).hidden_states, before.hidden_states, strict=True):
        torch.testing.assert_close(own[mask], expected[mask], rtol=1e-2, atol=5e-3)


def test_the_lighter_the_prior_the_nearer_a_student_comes_to_another_teacher(distilled, tmp_path):
    teacher, student = distilled
    other = tuned(teacher)
    found = []
    for weight in (1e7, 0.1, 1e-4):
        own = copy.deepcopy(student)
        found.append(inherit(other, own, (0, 2, 4), Blocks(text(12), tmp_path), prior_weight=weight))
        torch.testing.assert_close(own.embeddings.state_dict(), student.embeddings.state_dict(), rtol=0, atol=0)
    last = [each.layers[1].state for each in found]
    assert last[0] + 0.1 < last[1]
    assert last[1] + 0.05 < last[2]
    assert all(each.own == found[0].own for each in found)
    assert 0.3 < found[0].own < 1


def test_queries_and_keys_are_fitted_as_the_student_has_turned_them(tmp_path):
    teacher, student = lively(tiny_model()), tiny_model(**SMALL, seed=5)
    inherit(teacher, student, (0, 2, 4), Blocks(text(12), tmp_path))
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)))
    turned = []
    with torch.no_grad():
        for layer in encoder_layers(student):
            for linear in (layer.query, layer.key):  # their scores stay
                linear.weight.copy_((turn @ linear.weight.unflatten(0, (4, 6))).flatten(0, 1))
                linear.bias.copy_((linear.bias.unflatten(0, (4, 6)) @ turn.T).flatten())
            turned.append(layer.query.weight.clone())
    inherit(teacher, student, (0, 2, 4), Blocks(text(12), tmp_path), prior_weight=1e-3)
    for layer, own in zip(encoder_layers(student), turned, strict=True):
        assert float(torch.cosine_similarity(layer.query.weight.detach().flatten(), own.flatten(), 0)) > 0.8


REFUSED = [
    ("nomic_bert", {}, (0, 2, 4), ModelError, "nomic_bert"),
    ("bert", {"hidden_size": 96}, (0, 2, 4), ConfigError, "hidden_size 96 is larger than the teacher's 48"),
    ("bert", {"hidden_act": "relu"}, (0, 2, 4), ConfigError, "activation is relu, the teacher's gelu"),
    ("bert", {"max_position_embeddings": 80}, (0, 2, 4), ConfigError, "80 positions, the teacher only 64"),
    ("electra", {}, (0, 2, 4), ConfigError, "student has a linear layer between its embeddings"),
    ("bert", {}, (1, 2, 4), ConfigError, "begin with 0 and rise"),
    ("bert", {}, (0, 2, 2), ConfigError, "begin with 0 and rise"),
]


@pytest.mark.parametrize(("model_type", "changes", "layer_map", "error", "said"), REFUSED)
def test_what_has_no_closed_form_is_refused_with_the_reason(model_type, changes, layer_map, error, said):
    student = tiny_config(model_type, **{"num_hidden_layers": 2, **changes})
    with pytest.raises(error, match=said):
        check_inheritance(tiny_config(), student, layer_map)


def test_all_that_does_not_fit_is_said_at_once():
    student = tiny_config(num_hidden_layers=2, hidden_size=96, hidden_act="relu")
    with pytest.raises(ConfigError, match="2 problems"):
        check_inheritance(tiny_config(), student, (0, 2, 4))


@pytest.mark.slow
def test_students_started_together_are_those_started_alone_from_one_pass_over_the_teacher(tmp_path, monkeypatch):
    teacher = lively(tiny_model(labels=["bad", "good"]))
    maps = ((0, 2, 4), (0, 1, 3, 4), (0, 3), (0, 1, 2, 3, 4))
    shapes = ({**SMALL}, {**SMALL, "num_hidden_layers": 3}, {**SMALL, "num_hidden_layers": 1}, {})
    whole = [tiny_model(labels=["good", "bad"], **shape, seed=5) for shape in shapes]
    pupils = [Pupil(model, layer_map, columns=[1, 0]) for model, layer_map in zip(whole, maps, strict=True)]
    pupils.append(Pupil(lively(tiny_model(labels=["good", "bad"], **SMALL, seed=6)), (0, 2, 4), [1, 0], 0.1))
    alone = [pupil._replace(student=copy.deepcopy(pupil.student)) for pupil in pupils]
    expected = [
        inherit(teacher, *pupil[:2], Blocks(text(), tmp_path), columns=pupil.columns, prior_weight=pupil.prior_weight)
        for pupil in alone
    ]
    passed = []
    monkeypatch.setattr(sweep, "run_last_layer", lambda *words: passed.append(words[1]) or fit.run_last_layer(*words))
    found = inherit_all(teacher, pupils, Blocks(text(), tmp_path))
    assert len(passed) == 4 * 6  # each of the four layers is somebody's last, once for each of the six blocks
    for pupil, other, one, two in zip(pupils, alone, found, expected, strict=True):
        assert all(map(torch.equal, pupil.student.state_dict().values(), other.student.state_dict().values()))
        assert all(map(torch.equal, one.projections.values(), two.projections.values()))
        assert (one.states, one.layers, one.head, one.own) == (two.states, two.layers, two.head, two.own)
