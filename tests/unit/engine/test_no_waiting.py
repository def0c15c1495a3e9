"""Nothing in a step that is not looked at waits for the device: it is run where no number can be read.

DeepSpeed's own waits that are left, each for a reason: fp16 asks every step whether the loss scale was too large;
ZeRO 3 and offloaded optimizers take their norms on the host; `engine.deepspeed_private` removes the others. Of ours,
teachers that read rows by a tokeniser of their own, and kept answers for each word, ask the device which rows they are.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support.models import random_batch, tiny_model
from tests.support.standin_gpu import DEVICE, HostCopyError, stand_in_gpu
from tinybert_ds.engine import loop
from tinybert_ds.engine.deepspeed_private import _clip_without_asking, _norm_at_once
from tinybert_ds.engine.loop import add_share, examine, read_together
from tinybert_ds.engine.watch.health import Health
from tinybert_ds.losses import gradients_only
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.cuda_layers import FusedLayerNorm, use_cuda_layers
from tinybert_ds.models.student import DistilledStudent, TeacherPart
from tinybert_ds.objective import IntermediateObjective, PredictionObjective, Relations
from tinybert_ds.targets import SCORES
from tinybert_ds.types import move

LENGTHS = ((11, 16, 5), (16, 16, 16))
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def on_device(module, dtype=None):
    """Return a module whose parameters and buffers have no data."""
    return module.to_empty(device=DEVICE) if dtype is None else module.to_empty(device=DEVICE).to(dtype)


def batch_of(lengths):
    return move(random_batch(lengths)._replace(padded=len(set(lengths)) > 1), DEVICE)


@pytest.fixture(scope="module")
def encoders():
    """Return a teacher of 4 layers in float16 and a student of 2 in bfloat16, with heads of 6 and of 12."""
    teacher, student = tiny_model(), tiny_model(num_hidden_layers=2, hidden_size=24, **DROPOUT).train()
    return (
        on_device(CapturingEncoder(teacher, states=(0, 2, 4), attention_layers=(1, 3), logits=False), torch.float16),
        on_device(CapturingEncoder(student, states=range(3), attention_layers=range(2), logits=False), torch.bfloat16),
    )


def test_what_waits_is_seen():
    with stand_in_gpu():
        numbers = torch.empty(3, device=DEVICE)
        for wait in (lambda: bool(numbers.all()), lambda: numbers.sum().item(), numbers.cpu):
            with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
                wait()
        for copy in (
            lambda: torch.tensor(-1.0, device=DEVICE),
            lambda: torch.as_tensor(2.0, device=DEVICE),
            lambda: numbers[[0, 1]],
            lambda: torch.ones(3).to(DEVICE),
        ):
            with pytest.raises(HostCopyError):
                copy()


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("relations", [None, "kl", "scores"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=["padded", "full"])
def test_teacher_student_losses_and_backward_wait_for_nothing(encoders, lengths, relations, padding):
    teacher, student = encoders
    if relations is not None:
        relations = Relations(layers=(1,), heads=4, form=relations, values=0.0)
    objective = IntermediateObjective(2, 24, 48, projection="per_layer", padding=padding, relations=relations)
    part = TeacherPart(states=(0, 1, 2), layers=(0, 1))
    module = DistilledStudent(student, on_device(objective, torch.bfloat16), part)
    with stand_in_gpu(), gradients_only():
        for model in (teacher.requires_grad_(False), module):
            use_cuda_layers(model, DEVICE)
        batch = batch_of(lengths)
        with torch.no_grad():
            lesson = teacher(batch)
        terms = module(batch, lesson)
        terms["loss"].backward()
    assert module.teacher_check is not None
    assert any(isinstance(part, FusedLayerNorm) for part in teacher.modules())
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    assert len(trained) >= 5 + 2 * 16 - 2


@pytest.mark.parametrize("weights", [{}, {"label_weight": 0.5}, {"target": SCORES}])
def test_predictions_and_labels_wait_for_nothing(weights):
    labels = ("score",) if "target" in weights else ("bad", "good")
    models = [tiny_model(labels=labels), tiny_model(labels=labels, num_hidden_layers=2, hidden_size=24, **DROPOUT)]
    teacher, student = (
        on_device(CapturingEncoder(model, states=(), attention_layers=(), logits=True), torch.bfloat16)
        for model in models
    )
    objective = PredictionObjective(teacher_columns=range(len(labels))[::-1], **weights)
    module = DistilledStudent(student.train(), on_device(objective))
    with stand_in_gpu(), gradients_only():
        batch = batch_of(LENGTHS[0])
        with torch.no_grad():
            lesson = teacher(batch)
        terms = module(batch, lesson)
        terms["loss"].backward()
    assert student.model.classifier.weight.grad is not None


def test_the_loops_own_arithmetic_waits_for_nothing():
    with stand_in_gpu():
        module = SimpleNamespace(teacher_check=torch.empty((), device=DEVICE))
        engine = SimpleNamespace(fp16_enabled=lambda: False, module=module)
        health = Health(DEVICE)
        run = SimpleNamespace(engine=engine, state=SimpleNamespace(step=4), health=health)
        run.checkpoints = SimpleNamespace(last_good=None)
        for step in range(300):
            module.teacher_check = None if step % 2 else torch.empty((), device=DEVICE)
            examine([run], [{"grad_norm": torch.empty((), device=DEVICE)}], looked_at=False)
        mean = {}
        for _ in range(2):
            add_share(mean, {"loss": torch.empty((), device=DEVICE)}, 2)
    assert mean["loss"].device == DEVICE


def test_the_norm_and_the_clipping_of_zero_wait_for_nothing(monkeypatch):
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda group: 1)
    with stand_in_gpu():
        gradients = [torch.empty(3, 4, device=DEVICE, dtype=torch.bfloat16), torch.empty(5, device=DEVICE)]
        optimizer = SimpleNamespace(
            averaged_gradients={0: gradients[:1], 1: gradients[1:], 2: None},
            loss_scale=1.0,
            clip_grad=1.0,
            device=DEVICE,
            dp_process_group=None,
            optimizer=object(),
        )
        norm = _norm_at_once(optimizer)
        _clip_without_asking(optimizer, [torch.empty(17, device=DEVICE)], norm)
    assert norm.shape == ()


def test_numbers_of_device_and_host_are_read_apart(monkeypatch):
    def stack(tensors):
        assert {tensor.device for tensor in tensors} == {DEVICE}, "CUDA puts no tensors of two devices together"
        return torch.arange(len(tensors), dtype=torch.float64)  # as if they had been read

    monkeypatch.setattr(loop.torch, "stack", stack)
    loss, hidden = (torch.empty((), device=DEVICE) for _ in range(2))
    terms = {"loss": loss, "grad_norm": torch.tensor(2.5), "hidden_loss": hidden, "scale": 4.0}  # an offloaded norm
    assert read_together(terms) == {"loss": 0.0, "hidden_loss": 1.0, "grad_norm": 2.5, "scale": 4.0}
