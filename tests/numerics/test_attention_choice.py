"""Which form of the fused attention loss is taken: by how much is multiplied, on which device, in which layout."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.numerics.test_attention import FUSED, problem_of
from tests.support.numerics import attention_case
from tinybert_ds.errors import ConfigError
from tinybert_ds.losses import attention, backends, gradients_only
from tinybert_ds.losses.reference import Problem


@pytest.mark.parametrize(("with_value", "gram_factor"), [(False, 8 * 96 * 32), (True, 8 * 96 * 32 + 4 * 64 * 64)])
def test_the_model_behind_auto_counts_the_multiplications_that_are_done(with_value, gram_factor):
    heads, length = 3, 96
    case = attention_case(heads=heads, length=length, head_sizes=(26, 64), lengths=(length,)).to(torch.float32)
    counted = {}
    for backend in FUSED:
        with FlopCounterMode(display=False) as counter, nullcontext() if with_value else gradients_only():
            case.loss_and_gradients(backend=backend)
        counted[backend] = counter.get_total_flops()
    assert counted == {
        "gram": heads * length * gram_factor,
        "tiled": heads * length**2 * (2 * 96 + 4 * 32),
    }
    crossover = gram_factor / (2 * 96 + 4 * 32)
    assert attention.gram_pays_from(26, 64, with_value=with_value) == math.ceil(crossover)


def test_auto_takes_tiles_for_short_rows_and_the_closed_form_for_long_ones():
    def chosen(length):
        case = attention_case(heads=1, length=length, head_sizes=(26, 64), lengths=(length,))
        return attention.choose_form(problem_of(case, "valid"))

    assert [chosen(64), chosen(120), chosen(136), chosen(2048)] == ["tiled", "tiled", "gram", "gram"]


def problem_on_another_device(head_sizes=(26, 64), dtype=torch.float16) -> Problem:
    problem = problem_of(attention_case(heads=2, length=8, head_sizes=head_sizes, lengths=(8,)).to(dtype), "valid")
    student, teacher = (tuple(tensor.to("meta") for tensor in pair) for pair in (problem.student, problem.teacher))
    return problem._replace(student=student, teacher=teacher, real=problem.real.to("meta"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_sizes": (26, 144)}, "a head is wider than 128"),
        ({"head_sizes": (64, 96)}, "a head is wider than 64"),
        ({"head_sizes": (96, 64)}, "a head is wider than 64"),
        ({"head_sizes": (26, 128)}, None),
        ({"dtype": torch.float32}, "an input is not in half precision"),
        ({}, None),
    ],
)
def test_auto_takes_the_triton_kernel_off_the_cpu_or_says_why_not(change, reason, monkeypatch, caplog):
    triton_attention = pytest.importorskip("tinybert_ds.losses.triton_attention", reason="needs triton")
    monkeypatch.setattr(triton_attention, "device_refusal", lambda device: None)
    backends.announce.cache_clear()
    problem = problem_on_another_device(**change)
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        with_value = attention.choose_form(problem)
        with gradients_only():
            without = attention.choose_form(problem)
    assert {with_value, without} == {"gram" if reason else "triton"}
    (message,) = caplog.messages
    assert (reason or "one launch (triton)") in message


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16, torch.float16), (torch.float32, True, "tf32")),
        ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, False, "none")),
        ((torch.float32, torch.float16), (torch.float32, False, "none")),
    ],
    ids=str,
)
def test_half_precisions_in_a_mixture_go_through_tf32_on_cuda_and_nothing_else_does(dtypes, expected, monkeypatch):
    standin_gpu = pytest.importorskip("tests.support.standin_gpu", reason="needs triton")
    seen, terms = [], attention.gram_terms

    def spy(operands, *more, tf32):
        seen.append((operands.dtype, tf32, torch.backends.cuda.matmul.fp32_precision))
        return terms(operands, *more, tf32=tf32)

    monkeypatch.setattr(attention, "gram_terms", spy)
    problem = problem_on_another_device(head_sizes=(96, 128))
    pairs = (
        [t.to(dtype) for t in pair] for pair, dtype in zip((problem.student, problem.teacher), dtypes, strict=True)
    )
    student, teacher = map(tuple, pairs)
    with standin_gpu.stand_in_gpu(), gradients_only():
        loss = attention.fused_loss(problem._replace(student=student, teacher=teacher), form="gram", denominator=3.0)
    assert loss.requires_grad
    assert seen == [expected]
    assert torch.backends.cuda.matmul.fp32_precision == "none"


@pytest.mark.parametrize("layout", ["spread", "unlike"])
def test_the_triton_kernel_refuses_layouts_that_it_cannot_read(layout, monkeypatch):
    triton_attention = pytest.importorskip("tinybert_ds.losses.triton_attention", reason="needs triton")
    monkeypatch.setattr(triton_attention, "device_refusal", lambda device: None)
    problem = problem_on_another_device()
    query, key = problem.student
    assert triton_attention.refusal(problem) is None
    if layout == "spread":
        spread = query.repeat_interleave(2, dim=3)[..., ::2]
        assert "apart in memory" in triton_attention.refusal(problem._replace(student=(spread, spread)))
    else:
        assert "laid out differently" in triton_attention.refusal(problem._replace(student=(query, key.contiguous())))


def test_auto_without_triton_takes_the_closed_form_and_names_the_install_command(monkeypatch, caplog):
    monkeypatch.setattr(attention, "triton_is_installed", lambda: False)
    backends.announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        assert attention.choose_form(problem_on_another_device()) == "gram"
    assert "pip install triton" in caplog.text


def test_asking_for_triton_where_it_cannot_run_is_refused_with_what_to_do():
    case = attention_case(heads=1, length=4, head_sizes=(4, 4), lengths=(4,)).to(torch.float16)
    with pytest.raises(ConfigError, match=r"backend='triton' cannot compute .* use 'auto' or 'gram'"):
        case.loss(backend="triton")
