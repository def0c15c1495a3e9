"""Training under bf16 autocast, the default of CPUs that multiply bf16, against fp32: seconds and quality.

    python tests/benchmarks/precisions.py OUT_DIR [--task snippets] [--seeds 0 1 2] [--steps 250]

OUT_DIR is that of `quality.py`. With each seed the pre-trained encoder is fine-tuned, and a student learns layers and
predictions of the yardstick's teacher of the task in one stage, from the same start in closed form; both in either
precision, in turn, and are compared by pairs. Scores are those of the test split, seconds those of the whole command.
Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import RESULTS, environment_line
from tests.benchmarks.quality import BATCH_ROWS, DECAYING, STUDENT, Budget, Yardstick
from tests.benchmarks.quality_inputs import LONGEST, read_split
from tests.benchmarks.quality_judge import judge, logits_of
from tests.benchmarks.quality_tables import standard_error
from tests.benchmarks.real_commands import write_table
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY

CONFIGS = {"bf16": "zero0_autocast_bf16.json", "fp32": "zero0_fp32.json"}
KINDS = ("fine-tuning", "distillation")


class Trained(NamedTuple):
    """A model."""

    kind: str
    precision: str
    seed: int
    score: float
    seconds: float


def train(work: Yardstick, task: str, steps: int, start: Path, kind: str, precision: str, seed: int) -> Trained:
    """Train a model, if that is not done, and judge it."""
    folder = work.out / f"precisions-{task}-{steps}" / f"{kind}-{precision}-{seed}"
    data: list[object] = ["--data_dir", work.task(task), "--task_file", work.task(task) / "task.yaml"]
    words = [*data, "--train_batch_size", BATCH_ROWS, "--eval_batch_size", 64, "--max_steps", steps, "--seed", seed]
    words += ["--eval_step", steps, "--save_steps", steps, "--deepspeed_config", CONFIG_DIRECTORY / CONFIGS[precision]]
    if kind == "fine-tuning":
        stage, words = "finetune", [*words, "--model", work.encoder, "--learning_rate", 5e-5]
    else:
        stage, words = "task_distill", [*words, "--joint", "--teacher_model", work.teacher(task)]
        words += ["--student_model", start, "--learning_rate", 3e-4, *DECAYING]
    seconds = work.train(stage, words, folder)
    rows, references = read_split(work.task(task), "test")
    logits = logits_of(folder, rows)
    return Trained(kind, precision, seed, judge(logits, references, logits, logits).score, seconds)


def table(found: Sequence[Trained]) -> str:
    """Return Markdown."""
    lines = ["| | precision | score | each seed | seconds |", "|---|---|---:|---:|---:|"]
    differences = []
    for kind in KINDS:
        of = {name: [one for one in found if (one.kind, one.precision) == (kind, name)] for name in CONFIGS}
        for name, own in of.items():
            each = ", ".join(f"{100 * one.score:.1f}" for one in own)
            score, seconds = (statistics.mean(getattr(one, field) for one in own) for field in ("score", "seconds"))
            lines.append(f"| {kind} | {name} | {100 * score:.1f} | {each} | {seconds:.0f} |")
        pairs = list(zip(of["bf16"], of["fp32"], strict=True))
        points = [100 * (half.score - whole.score) for half, whole in pairs]
        error = f" (standard error {standard_error(points):.2f})" if len(points) > 1 else ""
        share = statistics.median(half.seconds / whole.seconds for half, whole in pairs)
        differences.append(f"{kind}: bf16 {statistics.mean(points):+.2f} points{error}, {share:.2f} of the seconds.")
    return "\n".join([*lines, "", *differences, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("out_dir", type=Path)
    add("--task", default="snippets")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=250)
    add("--glue_dir", type=Path, help="for sst-2 and sts-b")
    add("--results", type=Path, default=RESULTS)
    values = parser.parse_args(arguments)
    work = Yardstick(values.out_dir.resolve(), values.glue_dir, Budget(0.0))
    teacher = work.prepare(values.task)
    start = work.out / f"precisions-{values.task}-{values.steps}" / "start"
    words = ["--teacher_model", work.teacher(values.task), "--student_model", STUDENT, "--seed", 1]
    words += ["--data_dir", work.task(values.task), "--task_file", work.task(values.task) / "task.yaml"]
    words += ["--max_seq_length", LONGEST, "--calibration_tokens", work.budget.calibration_tokens]
    work.once(start.with_suffix(".json"), lambda: work.command("inherit", [*words, "--output_dir", start], "start"))
    found = [
        train(work, values.task, values.steps, start, kind, precision, seed)
        for seed in values.seeds
        for kind in KINDS
        for precision in CONFIGS
    ]
    text = f"{values.task}, {values.steps} steps of {BATCH_ROWS}, the yardstick's teacher {100 * teacher:.1f}. "
    text += f"{environment_line()}.\n\n{table(found)}"
    write_table(values.results, "precisions", text, Trained._fields, found)
    print(text)


if __name__ == "__main__":
    main()
