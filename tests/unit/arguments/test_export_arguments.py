import pytest

from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.export import ExportModelArguments

TASK = ["--data_dir", "task", "--task_name", "sst-2"]


def problems(*words: str) -> list[str]:
    return parse_arguments(ExportModelArguments, ["--model", "student", "--output_dir", "out", *TASK, *words])[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "openvino", "--opset", "21"], "--opset is for ONNX files; leave it out, or add onnx to --format"),
        (["--format", "openvino", "--int8", "static"], "--int8 is for ONNX files; leave it out"),
        (["--precision", "fp32", "--int8", "static"], "--int8 is for files in 8 bits; leave it out, or add int8"),
        (["--precision", "int8", "--opset", "21"], "--opset is for ONNX files in fp32 and fp16; leave it out, or give"),
        (["--precision", "fp32", "--int8_opset", "20"], "--int8_opset is for files in 8 bits; leave it out, or add"),
        (["--int8_opset", "23"], "--int8_opset is 23, for which torch's exporter writes rotary embeddings that"),
        (["--format", "openvino", "--keep_padding"], "--keep_padding is for ONNX files; leave it out, or add onnx"),
        (["--precision", "fp16", "--keep_padding"], "--keep_padding is for ONNX files in fp32 and int8; leave it out"),
        (["--precision", "fp16", "--calibration_rows", "64"], "--calibration_rows is for files in 8 bits"),
    ],
)
def test_flags_that_these_formats_and_precisions_do_not_read_are_refused(words, told):
    (problem,) = problems(*words)
    assert problem.startswith(told)


@pytest.mark.parametrize(
    "words",
    [
        ["--opset", "21", "--int8_opset", "20", "--int8", "static", "--calibration_rows", "64"],
        ["--format", "openvino", "--calibration_rows", "64"],
        ["--format", "openvino"],
        ["--precision", "fp32"],
        ["--keep_padding"],
        ["--precision", "fp32", "--keep_padding"],
    ],
)
def test_flags_that_are_read_are_taken(words):
    assert problems(*words) == []
