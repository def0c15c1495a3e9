import math
from dataclasses import replace

from tinybert_ds.export.record import Row, failures, render, report_of

TORCH = Row("student", "torch fp32", "torch", "fp32", "", 2**20, 0.8, None, None, None, {"1": 4.0}, 100.0)
ONNX = replace(TORCH, name="ONNX fp32", kind="onnx", file="onnx/model.onnx", loss=0.01, agreement=0.9, peak_mib=None)
ABOUT = {"measured_on": "Task sst-2.", "metric": "accuracy", "agreement": "same decision", "conditions": []}


def test_a_loss_that_is_no_number_is_too_much_and_one_that_is_allowed_is_not():
    assert failures([TORCH, ONNX], ABOUT, 0.01) == []
    (told,) = failures([replace(ONNX, loss=math.nan)], ABOUT, 0.01)
    assert "loses nan of accuracy" in told


def test_a_peak_that_could_not_be_measured_is_shown_as_missing():
    first, second = [line for line in render(report_of([TORCH, ONNX], ABOUT)).splitlines() if "| student," in line]
    assert first.endswith("| 100 |")
    assert second.endswith("| not measured |")


def test_an_odd_name_of_a_model_stays_in_its_cell():
    table = render(report_of([replace(TORCH, model="a|b")], ABOUT))
    assert "| a\\|b, torch fp32 | 1.0 |" in table
