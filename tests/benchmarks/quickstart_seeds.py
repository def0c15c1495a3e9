"""The quickstart with several seeds, as one table.

    python tests/benchmarks/quickstart_seeds.py OUT_DIR [--seeds 42 43 44]

Runs `launchers/quickstart.sh` for each seed into OUT_DIR/seed-N, all on the same data, and writes OUT_DIR/seeds.md: a
row for each seed, then mean and standard deviation over the seeds. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "teacher": lambda report: report["teacher"]["metric"],
    "student": lambda report: report["student"]["metric"],
    "student before training": lambda report: report["student_before_training"]["metric"],
    "student without distillation": lambda report: report["student_without_distillation"]["metric"],
    "gain by distillation": lambda report: (
        report["student"]["metric"] - report["student_without_distillation"]["metric"]
    ),
    "compression": lambda report: report["compression"],
    "speedup": lambda report: report["speedup"],
    "seconds": lambda report: sum(stage["seconds"] for stage in report["stages"]),
}


def table(reports: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the Markdown table of several seeds' report.json."""
    rows = {str(seed): [value(report) for value in COLUMNS.values()] for seed, report in reports.items()}
    columns = list(zip(*rows.values(), strict=True))
    rows["mean"] = [statistics.mean(column) for column in columns]
    if len(reports) > 1:
        rows["standard deviation"] = [statistics.stdev(column) for column in columns]
    lines = ["| seed | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| {name} | " + " | ".join(f"{value:.4g}" for value in values) + " |" for name, values in rows.items()]
    return "\n".join(lines) + "\n"


def run(out_dir: Path, seed: int) -> Mapping[str, Any]:
    """Run the quickstart with one seed; returns its report.json."""
    folder = out_dir / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (out_dir / "data").mkdir(exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(Path("..") / "data", target_is_directory=True)  # fetched once for all seeds
    environment = {**os.environ, "QUICKSTART_SEED": str(seed)}
    subprocess.run(["bash", str(ROOT / "launchers" / "quickstart.sh"), str(folder)], env=environment, check=True)
    report: Mapping[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Run the quickstart with several seeds.", allow_abbrev=False)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    values = parser.parse_args(arguments)
    out_dir = values.out_dir.resolve()
    reports = {seed: run(out_dir, seed) for seed in values.seeds}
    (out_dir / "seeds.md").write_text(table(reports), encoding="utf-8")
    print(table(reports))


if __name__ == "__main__":
    main()
