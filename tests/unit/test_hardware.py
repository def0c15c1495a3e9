"""The choice of the library for float32 matrix products: by accuracy alone, and only where it is wanted."""

from __future__ import annotations

import logging

import pytest
import torch

from tinybert_ds import hardware

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _restored_setting():
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def choose(monkeypatch, caplog, errors, **options):
    """Choose with made-up errors (default library, oneDNN); return the setting and what was said."""
    found = iter(errors)
    monkeypatch.setattr(hardware, "product_error", lambda: next(found))
    with caplog.at_level(logging.INFO, logger="tinybert_ds"):
        hardware.choose_float32_products(options.pop("device", CPU), **options)
    return torch.backends.mkldnn.matmul.fp32_precision, caplog.messages


@pytest.mark.parametrize(
    ("error", "setting", "said"), [(3e-7, "bf16", "oneDNN ("), (2e-3, "none", "is off by 2.0e-03")]
)
def test_onednn_is_taken_only_where_it_is_as_accurate_as_float32(error, setting, said, monkeypatch, caplog):
    found, (message,) = choose(monkeypatch, caplog, [2e-7, error], onednn=True)
    assert found == setting
    assert said in message


def test_the_flag_leaves_the_default_library_and_nothing_is_probed(monkeypatch, caplog):
    found, (message,) = choose(monkeypatch, caplog, [], onednn=False)
    assert found == "none"
    assert "--no_onednn_matmul" in message


def test_other_devices_are_left_alone(monkeypatch, caplog):
    assert choose(monkeypatch, caplog, [], onednn=True, device=torch.device("meta"))[1] == []


def test_the_probe_tells_float32_products_from_bfloat16_ones(monkeypatch):
    exact = hardware.product_error()
    assert 1e-8 < exact < 1e-6
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: linear(x.bfloat16(), w.bfloat16()).float())
    assert hardware.product_error() > 100 * hardware.WORSE_BY * exact


def test_the_choice_on_this_machine_keeps_float32_accuracy():
    own = hardware.product_error()
    hardware.choose_float32_products(CPU, onednn=True)
    assert hardware.product_error() <= hardware.WORSE_BY * own


def test_operands_are_rounded_inside_the_context_only_even_if_it_is_left_by_an_error():
    settings = torch.backends.mkldnn.matmul
    settings.fp32_precision = "none"

    def fail_inside():
        with hardware.bfloat16_operands():
            assert settings.fp32_precision == "bf16"
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert settings.fp32_precision == "none"


def test_products_of_what_bfloat16_holds_are_exact_to_float32_inside_the_context():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator).bfloat16().float() for _ in range(2))
    exact = left.double() @ right.double()
    with hardware.bfloat16_operands():
        error = (left @ right).double() - exact
    assert error.norm() / exact.norm() < 1e-6
