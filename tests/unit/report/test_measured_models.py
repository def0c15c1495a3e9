import json

import pytest

from tests.support.run_records import write_run
from tinybert_ds.errors import ConfigError
from tinybert_ds.report.__main__ import main
from tinybert_ds.report.models import figures_of, find_measured


def comparison() -> dict:
    row = {"parameters": 100, "metric": 0.8, "latency_ms": {"1": 4.0, "32": 40.0}, "bytes": 2**20}
    stages = [{"name": "prepare_corpus", "seconds": 5.0}]
    return {
        "metric": "accuracy",
        "teacher": row,
        "student": {**row, "metric": 0.7},
        "compression": 2.0,
        "speedup": 3.0,
        "stages": stages,
    }


def export() -> dict:
    row = {"model": "student", "name": "ONNX fp32", "metric": 0.7, "bytes": 2**21, "latency_ms": {"1": 2.0}}
    return {"about": {"metric": "accuracy"}, "exports": [row]}


def test_reports_of_comparisons_and_exports_are_found_and_others_are_left_alone(tmp_path):
    for place, content in ((".", comparison()), ("exported", export()), ("other", {"teacher": 1}), ("broken", "{")):
        (tmp_path / place).mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / place / "report.json").write_text(text)
    found = find_measured([tmp_path, tmp_path / "exported"])
    assert [measured.path.parent.name for measured in found] == [tmp_path.name, "exported"]
    compared, exported = found
    assert [model.name for model in exported.models] == ["student, ONNX fp32"]
    assert exported.models[0].mib == 2
    assert [model.name for model in compared.models] == ["teacher", "student"]
    titles = "".join(figures_of(compared))
    for part in (
        "accuracy against ms, batch of 1<",
        "batch of 32<",
        "accuracy against MiB on the disk",
        "seconds of each stage",
    ):
        assert part in titles


def test_the_page_shows_the_models_that_were_measured_beside_the_runs(tmp_path):
    write_run(tmp_path / "runs" / "student")
    (tmp_path / "runs" / "report.json").write_text(json.dumps(comparison()))
    main([str(tmp_path / "runs"), "--output_dir", str(tmp_path / "page")])
    page = (tmp_path / "page" / "report.html").read_text()
    assert "<h2>Models</h2>" in page
    assert "teacher <output>0.8 at 4 ms</output>" in page


def test_the_report_of_a_comparison_is_not_replaced_by_that_of_runs_and_that_of_runs_is(tmp_path):
    write_run(tmp_path / "runs" / "student")
    (tmp_path / "runs" / "report.md").write_text("# The student beside its teacher\n")
    words = [str(tmp_path / "runs"), "--output_dir"]
    with pytest.raises(ConfigError, match=r"report\.md was not written by this command"):
        main([*words, str(tmp_path / "runs")])
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_file()] == ["report.md"]
    for _ in range(2):
        main([*words, str(tmp_path / "page")])
    assert (tmp_path / "page" / "report.md").read_text().startswith("# Run student\n")
    write_run(tmp_path / "runs" / "other")
    for _ in range(2):
        main([*words, str(tmp_path / "page")])
    assert (tmp_path / "page" / "report.md").read_text().startswith("# 2 runs\n")
