"""The arguments of the comparison of a student with its teacher, and of the report about runs."""

from __future__ import annotations

from dataclasses import dataclass

from tinybert_ds.arguments.groups import ALLOW_UNKNOWN, MAX_SEQ_LENGTH, NO_CUDA, OUTPUT_DIR, STAGES_FILE, TaskPlace
from tinybert_ds.arguments.option import Command, data, like


@dataclass(frozen=True, kw_only=True)
class CompareArguments(TaskPlace):
    """Measure a teacher and its student: size, quality, latency. Writes report.json and report.md."""

    prog = "compare_models.py"

    teacher: str = data("Directory of the fine-tuned teacher.", path=True)
    student: str = data("Directory of the distilled student.", path=True)
    student_before_training: str | None = data(
        "Directory that the student started from, if that predicts already.", None, path=True
    )
    student_without_distillation: str | None = data("Directory of a student to compare with.", None, path=True)
    student_exported: str | None = data(
        "Directory of the student as launchers/export_model.py wrote it: a row for each of its files.", None, path=True
    )
    output_dir: str = like(OUTPUT_DIR)
    max_seq_length: int | None = like(MAX_SEQ_LENGTH)
    stages_file: str | None = like(STAGES_FILE)
    allow_unknown: bool = like(ALLOW_UNKNOWN)
    split: str = data("Labelled split to measure on.", "test", metavar="NAME")
    no_cuda: bool = like(NO_CUDA)


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Command):
    """Write report.html, one file with curves and tables, and report.md about runs and how they differ."""

    prog = "python -m tinybert_ds.report"

    runs: list[str] = data(
        "--output_dir of a training command, or a directory with such directories.", path=True, positional=True
    )
    output_dir: str | None = like(OUTPUT_DIR, None, help="Where the report goes. Default: into the first run.")
