"""Exported directories opened by loaders that need another transformers than this program, from folders of their own;
launchers/README.md says how these are filled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import model_directory
from tests.support.runs import write_sentiment
from tests.unit.stages.test_export import LABELS, of_task, openvino_difference, run_export, words

pytestmark = pytest.mark.slow  # a graph is traced, written, optimised and measured

REPEAT = """
import sys
from transformers import AutoTokenizer
subfolder, file = sys.argv[2].split("/")
model = Loader.from_pretrained(sys.argv[1], subfolder=subfolder, file_name=file, **how)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
rows = [line.rstrip().split("\\t") for line in open(sys.argv[3])][1:]
texts = [text for text, _ in rows]
names = [model.config.id2label[int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())] for text in texts]
assert len(model(**tokenizer((2 * texts)[:33], padding=True, return_tensors="pt")).logits) == 33
print(sum(name == ("negative", "positive")[int(label)] for name, (_, label) in zip(names, rows)) / len(rows))
"""
OPTIMUM = """
from optimum.onnxruntime import ORTModelForSequenceClassification as Loader
how = {}
"""
OPTIMUM_INTEL = """
from optimum.intel import OVModelForSequenceClassification as Loader
how = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}  # CPUs that multiply bf16 would take that
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A classifier and its task."""
    model_directory(tmp_path / "student", labels=LABELS, seed=1, num_hidden_layers=2)
    write_sentiment(tmp_path / "task", rows=80)
    return tmp_path


def require_the_metrics_of_the_report(opener: str, packages: str, out: Path, task: Path, *files: str) -> None:
    rows = {row["file"]: row["metric"] for row in json.loads((out / "report.json").read_text())["exports"]}
    for file in files:
        command = [sys.executable, "-c", opener + REPEAT, str(out), file, str(task / "dev.tsv")]
        environment = {**os.environ, "PYTHONPATH": packages}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.split()[-1]) == pytest.approx(rows[file], abs=0.051)  # a row: batches scale together


@pytest.mark.skipif("OPTIMUM_PATH" not in os.environ, reason="needs optimum-onnx in OPTIMUM_PATH")
def test_optimum_s_own_loader_opens_the_directory_and_repeats_the_metric(folder):
    run_export(words(folder, "out", *of_task(folder), "--format", "onnx", "--precision", "fp32", "int8"))
    files = ("onnx/model.onnx", "onnx/model_quantized.onnx")
    require_the_metrics_of_the_report(OPTIMUM, os.environ["OPTIMUM_PATH"], folder / "out", folder / "task", *files)


@pytest.mark.skipif("OPTIMUM_INTEL_PATH" not in os.environ, reason="needs optimum-intel in OPTIMUM_INTEL_PATH")
def test_optimum_intel_s_own_loader_opens_the_directory_and_repeats_the_metric(folder):
    command = words(folder, "out", *of_task(folder), "--format", "openvino", "--precision", "fp32", "fp16", "int8")
    out, packages = folder / "out", os.environ["OPTIMUM_INTEL_PATH"]
    assert openvino_difference(command, folder / "student", out / "openvino" / "openvino_model.xml") < 1e-4
    names = ("model", "model_fp16", "model_qint8_quantized")
    files = [f"openvino/openvino_{name}.xml" for name in names]
    require_the_metrics_of_the_report(OPTIMUM_INTEL, packages, out, folder / "task", *files)
