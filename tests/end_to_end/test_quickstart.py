"""The quickstart as a user types it, with a few rows and steps of each stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = [
    "fetch_data",
    "prepare_corpus",
    "finetune_teacher",
    "general_distillation",
    "start_student",
    "task_distillation",
    "student_from_labels_alone",
    "export_student",
    "compare_models",
]
MODELS = ["teacher", "student", "student_before_training", "student_without_distillation"]
EXPORTED = [f"student, {name}" for name in ("ONNX fp32", "ONNX int8 dynamic")]


def start(out: Path) -> subprocess.Popen[str]:
    """Start it in its own session, so that all of it can be killed."""
    return subprocess.Popen(
        ["bash", "launchers/quickstart.sh", str(out)],
        cwd=ROOT,
        env={**os.environ, "QUICKSTART_SMOKE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished_stages(out: Path) -> list[str]:
    path = out / "stages.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [stage["name"] for stage in recorded if stage["finished"]]


@pytest.mark.parametrize(
    ("kind", "found", "words"), [("smoke", "full", []), ("full", "smoke", ["--max_documents", "20"])]
)
def test_a_smoke_run_and_a_full_run_do_not_share_a_directory(tmp_path, kind, found, words):
    stages = [{"name": "fetch_data", "seconds": 1.0, "finished": True, "command": ["python", *words]}]
    (tmp_path / "stages.json").write_text(json.dumps(stages, indent=2), encoding="utf-8")
    result = subprocess.run(
        ["bash", "launchers/quickstart.sh", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "QUICKSTART_SMOKE": "1" if kind == "smoke" else "0"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert f"holds a {found} run and this is a {kind} run" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["stages.json"]


@pytest.mark.slow
def test_the_quickstart_killed_on_its_way_goes_on_and_reports_everything(tmp_path):
    out = tmp_path / "out"
    first = start(out)
    deadline = time.monotonic() + 240
    while "prepare_corpus" not in finished_stages(out) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert finished_stages(out)[:2] == STAGES[:2]
    before = {stage["name"]: stage["seconds"] for stage in json.loads((out / "stages.json").read_text())}

    second = start(out)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output[-5000:]
    assert "prepare_corpus: finished before" in output
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert list(report) == [*MODELS, *EXPORTED, "majority_class", "compression", "speedup", "stages", "metric"]
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert [report["stages"][i]["seconds"] for i in (0, 1)] == [before[name] for name in STAGES[:2]]
    assert all(0 <= report[name]["metric"] <= 1 for name in [*MODELS, "majority_class"])
    assert all(set(report[name]["latency_ms"]) == {"1", "32"} for name in [*MODELS, *EXPORTED])
    assert report["student, ONNX fp32"]["metric"] == report["student"]["metric"]
    assert report["student, ONNX int8 dynamic"]["bytes"] < report["student"]["bytes"] / 3
    assert (report["teacher"]["parameters"], report["student"]["parameters"]) == (22_713_986, 7_331_330)
    assert output.endswith((out / "report.md").read_text(encoding="utf-8"))
