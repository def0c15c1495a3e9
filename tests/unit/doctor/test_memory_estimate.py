"""The estimate of the memory against what tensors really hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.models import random_batch, tiny_model
from tinybert_ds.doctor.memory import (
    ALLOWANCE,
    Job,
    ModelSize,
    Precision,
    activation_bytes,
    estimate,
    precision_of,
    teacher_output_bytes,
    trained_parameters,
)
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.recomputation import recompute_layers
from tinybert_ds.models.student import DistilledStudent, count_parameters
from tinybert_ds.objective import IntermediateObjective

TEACHER = ModelSize(parameters=110_000_000, layers=12, hidden=768, intermediate=3072, heads=12)
STUDENT = ModelSize(parameters=14_000_000, layers=4, hidden=312, intermediate=1200, heads=12)
JOB = Job(TEACHER, STUDENT, rows=32, sequence_length=128, world_size=4)
FP32 = Precision(stage=0, bytes=4)


def size_of(model) -> ModelSize:
    config = model.config
    return ModelSize(
        parameters=count_parameters(model),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        attention_dropout=config.attention_probs_dropout_prob,
    )


def kept_bytes(module, batch, teacher_output) -> int:
    """Return the bytes of everything that a forward keeps for its backward, parameters and the teacher's left out."""
    foreign = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    outputs = (*teacher_output.hidden_states, *teacher_output.queries, *teacher_output.keys)
    foreign |= {tensor.untyped_storage().data_ptr() for tensor in outputs}
    kept: dict[int, int] = {}
    held = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in foreign:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # or its address would be given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = module(batch, teacher_output)
    assert terms["loss"].requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("layers", "hidden", "intermediate", "rows", "tokens", "dropout"),
    [(4, 96, 384, 8, 64, 0.0), (2, 192, 400, 4, 64, 0.0), (2, 96, 384, 8, 64, 0.1)],
)
def test_the_activations_are_what_autograd_keeps(layers, hidden, intermediate, rows, tokens, dropout):
    changes = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    student = tiny_model(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=intermediate, **changes
    ).train()
    teacher = tiny_model(num_hidden_layers=layers, hidden_size=240, intermediate_size=480)
    states, attention = range(layers + 1), range(layers)
    encoders = [
        CapturingEncoder(model, states=states, attention_layers=attention, logits=False) for model in (student, teacher)
    ]
    objective = IntermediateObjective(layers, hidden, 240, projection="per_layer", padding="valid")
    batch = random_batch([tokens] * rows)
    with torch.no_grad():
        output = encoders[1](batch)
    job = Job(size_of(teacher), size_of(student), rows, tokens, world_size=1, teacher_bytes=4, device="cpu")

    module = DistilledStudent(encoders[0], objective)
    measured = kept_bytes(module, batch, output)
    assert activation_bytes(job, FP32) == pytest.approx(measured, rel=0.2)
    recompute_layers(encoders[0], torch.device("cpu"))
    outside = kept_bytes(module, batch, output)
    inputs = layers * rows * tokens * hidden * 4
    recomputing = activation_bytes(dataclasses.replace(job, recomputes=True), FP32)
    assert recomputing == pytest.approx(outside + inputs + (measured - outside) / layers, rel=0.2)
    held = sum(t.nbytes for t in (*output.hidden_states, *output.queries, *output.keys))
    assert teacher_output_bytes(job) == held
    assert trained_parameters(job) == count_parameters(student) + count_parameters(objective)


@pytest.mark.parametrize(
    ("precision", "parameters", "gradients", "optimizer"),
    [
        (FP32, 4, 4, 8),
        (Precision(stage=0, bytes=2), 2, 2, 12),
        (Precision(stage=1, bytes=2), 2, 2, 12 / 4),
        (Precision(stage=2, bytes=2), 2, 2 / 4 + 4, 12 / 4),
        (Precision(stage=3, bytes=2), 2 / 4, 2 / 4 + 4, 12 / 4),
    ],
)
def test_each_zero_stage_splits_what_it_splits(precision, parameters, gradients, optimizer):
    count = trained_parameters(JOB)
    device = estimate(JOB, precision).device
    expected = {"parameters": parameters, "gradients": gradients, "optimizer": optimizer}
    for name, bytes_each in expected.items():
        assert device[name] == pytest.approx(count * bytes_each * ALLOWANCE, rel=1e-3), name


def test_offloading_moves_the_optimizer_to_the_host():
    stays = estimate(JOB, Precision(stage=2, bytes=2))
    moves = estimate(JOB, Precision(stage=2, bytes=2, offloads_optimizer=True))
    assert "optimizer" not in moves.device
    assert moves.host["optimizer"] == stays.device["optimizer"]
    assert moves.device_bytes + moves.host_bytes == stays.device_bytes + stays.host_bytes


def test_a_split_teacher_needs_less_the_more_ranks_there_are():
    def teacher(**changes):
        return estimate(dataclasses.replace(JOB, **changes), FP32).device["teacher"]

    assert teacher() == pytest.approx(TEACHER.parameters * 2 * ALLOWANCE, rel=1e-3)
    assert teacher(teacher_is_split=True) < teacher() / 2
    assert teacher(teacher_is_split=True, world_size=64) < teacher(teacher_is_split=True)


def test_a_config_is_read_for_what_counts():
    config = {
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "none"}},
    }
    assert precision_of(config) == Precision(stage=3, bytes=2, offloads_parameters=True)
    assert precision_of({"fp16": {"enabled": False}}) == Precision(stage=0, bytes=4)
