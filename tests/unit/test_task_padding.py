"""Rows of a task cost what they are long: the losses of "valid" padding do not see how far a batch is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.models import VOCAB_SIZE, tiny_model
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import IntermediateObjective, PredictionObjective
from tinybert_ds.types import Batch

LENGTH = 64


@pytest.fixture(scope="module")
def source():
    """Return batches of SST-2-like rows: 8 to 50 tokens, 22 on average."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(4, 5.5, 192).astype(np.int64), 8, 50)
    tokens = generator.integers(5, VOCAB_SIZE, lengths.sum()).astype(np.int16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = EncodedExamples(tokens, offsets, lengths.astype(np.int32), generator.integers(0, 2, len(lengths)))
    return TaskSource(rows, global_batch_size=16, max_seq_length=LENGTH, seed=0, padding="valid", pad_id=0)


def batches(source: TaskSource) -> list[Batch]:
    steps = range(source.steps_in_epoch(0))
    return [batch for step in steps for batch in source.micro_batches(0, step, rank=0, world_size=1, accumulation=1)]


def padded(batch: Batch) -> Batch:
    more = LENGTH - batch.input_ids.shape[1]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return batch._replace(**{name: F.pad(getattr(batch, name), (0, more)) for name in names})


def stage(name: str) -> tuple[CapturingEncoder, DistilledStudent]:
    labels = ("negative", "positive")
    teacher, student = tiny_model(labels=labels, seed=1), tiny_model(labels=labels, seed=2, num_hidden_layers=2)
    if name == "intermediate":
        objective = IntermediateObjective(2, 48, 48, projection="per_layer", padding="valid")
        return (
            CapturingEncoder(teacher, states=(0, 2, 4), attention_layers=(1, 3), logits=False),
            DistilledStudent(
                CapturingEncoder(student, states=range(3), attention_layers=range(2), logits=False), objective
            ),
        )
    encoders = [CapturingEncoder(model, states=(), attention_layers=(), logits=True) for model in (teacher, student)]
    kind = PredictionObjective() if name == "prediction" else PredictionObjective(weight=0, label_weight=1)
    return encoders[0], DistilledStudent(encoders[1], kind)


@pytest.mark.parametrize("name", ["intermediate", "prediction", "fine-tuning"])
def test_padding_a_batch_further_changes_neither_losses_nor_gradients(source, name):
    teacher, student = stage(name)
    for batch in batches(source)[::4]:
        found = []
        for form in (batch, padded(batch)):
            student.zero_grad()
            with torch.no_grad():
                lesson = teacher(form)
            loss = student(form, lesson)["loss"]
            loss.backward()
            gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
            found.append((float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])))
        (loss, gradient), (other_loss, other_gradient) = found
        assert other_loss == pytest.approx(loss, rel=1e-4)
        assert (other_gradient - gradient).norm() < 1e-3 * gradient.norm()


def test_a_pass_over_short_sentences_computes_less_than_half_of_the_tokens_that_full_padding_does(source):
    computed = sum(batch.input_ids.numel() for batch in batches(source))
    assert computed < 0.5 * source.samples_in_epoch(0) * LENGTH
