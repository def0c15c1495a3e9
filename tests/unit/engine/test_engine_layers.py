"""Which engines have layers in their form for CUDA: all whose ranks hold parameters whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tinybert_ds.engine import student, teacher

HOW = {"weight_decay": 0.0, "total_steps": 4, "warmup": 0.0, "schedule": "constant"}


@pytest.fixture
def asked(monkeypatch):
    """Return what is asked for, of modules that are taken by no engine."""
    asked = []
    for module in (student, teacher):
        monkeypatch.setattr(module, "use_cuda_layers", lambda model, device: asked.append((model, device)))
    return asked


@pytest.mark.parametrize("split", [False, True])
def test_a_student_has_them_unless_its_parameters_are_split(split, asked, monkeypatch):
    module, device = nn.Linear(2, 2), torch.device("cuda", 3)
    engine = SimpleNamespace(
        optimizer=None, module=module, device=device, zero_optimization_partition_weights=lambda: split
    )
    monkeypatch.setattr(student.deepspeed, "initialize", lambda **_: (engine, None, None, None))
    for name in ("forget_first_step", "clip_at_once", "reduce_nothing_alone"):
        monkeypatch.setattr(student, name, lambda _: None)
    assert student.build_engine(module, {}, **HOW) is engine
    assert asked == ([] if split else [(module, device)])


@pytest.mark.parametrize("kind", ["inference", "zero3"])
def test_a_teacher_has_them_unless_its_parameters_are_split(kind, asked, monkeypatch):
    encoder = nn.Linear(2, 2)
    monkeypatch.setattr(teacher, "_zero3_engine", lambda *_: encoder)
    monkeypatch.setattr(teacher.deepspeed, "init_inference", lambda module, **_: module)
    teacher.build_teacher(encoder, torch.float32, kind)
    assert [model for model, _ in asked] == ([] if kind == "zero3" else [encoder])
