"""How many steps of general distillation a student's start from its teacher is worth.

The quickstart's teacher, text and student, started in closed form and by SVD.

    python tests/benchmarks/head_start.py OUT_DIR [--steps 150] [--most 1200]

Both learn at a constant rate after a short warm-up, so that a step's losses do not depend on how many are to follow.
Printed are the losses of the first step, and the number of steps after which the student that started by SVD has both
held-out losses of the other one at --steps; it takes at most --most. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.ablation_inputs import fetch_teacher
from tests.benchmarks.real_commands import run_to_the_end
from tests.support.runs import read_metrics

LENGTH, BATCH_ROWS = 64, 16
LOSSES = ("attention_loss", "hidden_loss")


def distil(out: Path, data: Path, init: str, steps: int, evaluation_steps: int, rate: float) -> list[dict[str, Any]]:
    """Distil a student from a start; return the lines of its metrics."""
    words: list[object] = ["--pregenerated_data", out / "shards", "--teacher_model", data / "teacher"]
    words += ["--student_model", "3L_192", "--init", init, "--max_seq_length", LENGTH, "--seed", 42]
    words += ["--train_batch_size", BATCH_ROWS, "--learning_rate", rate, "--lr_schedule", "constant"]
    words += ["--warmup_proportion", 15 / steps, "--max_steps", steps, "--eval_fraction", 0.01]
    words += ["--eval_steps", evaluation_steps, "--save_steps", evaluation_steps, "--save_total_limit", 1]
    run_to_the_end("general_distill", [*words, "--logging_steps", 1, "--output_dir", out / init], out / f"log-{init}")
    return read_metrics(out / init)


def held_out(lines: Sequence[dict[str, Any]]) -> dict[int, tuple[float, ...]]:
    """Return the held-out losses of each step that was evaluated."""
    return {
        line["step"]: tuple(line[f"eval_{name}"] for name in LOSSES) for line in lines if "eval_attention_loss" in line
    }


def reached(goal: Sequence[float], found: dict[int, tuple[float, ...]]) -> int | None:
    """Return the first step that is at or below the goal in every loss; None where none is."""
    steps = (
        step
        for step, losses in sorted(found.items())
        if all(own <= other for own, other in zip(losses, goal, strict=True))
    )
    return next(steps, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--steps", type=int, default=150, help="of the student that starts from its teacher")
    parser.add_argument("--most", type=int, default=1200, help="steps of the other one")
    parser.add_argument("--rate", type=float, default=3e-4, help="of the quickstart's general stage")
    values = parser.parse_args(arguments)
    out = values.out_dir.resolve()
    data = fetch_teacher(out)
    if not (out / "shards").exists():
        words = ["--train_corpus", data / "documents" / "bbc_news.txt", "--split_sentences"]
        words += ["--bert_model", data / "teacher", "--output_dir", out / "shards", "--max_seq_len", LENGTH]
        run_to_the_end("prepare_corpus", words, out / "log-shards")
    ours = distil(out, data, "teacher", values.steps, values.steps, values.rate)
    theirs = distil(out, data, "svd", values.most, max(1, values.steps // 3), values.rate)
    first = {
        name: {start: round(lines[0][name], 3) for start, lines in (("teacher", ours), ("svd", theirs))}
        for name in LOSSES
    }
    goal, found = held_out(ours)[values.steps], held_out(theirs)
    step = reached(goal, found)
    result = {
        "first step": first,
        f"held-out losses at step {values.steps} from the teacher": [round(loss, 4) for loss in goal],
        "by SVD": {number: [round(loss, 4) for loss in losses] for number, losses in sorted(found.items())},
        "steps by SVD": step if step is not None else f"more than {values.most}",
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
