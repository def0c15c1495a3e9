"""What relations between tokens are worth: a student of 8 heads by relations beside one of 12 heads by scores.

    python tests/benchmarks/other_heads.py OUT_DIR [--seeds 42 43 44] [--only VARIANT...] [--name other_heads]

The teacher is a real encoder of 6 layers, width 384 and 12 heads, fine-tuned on film reviews; the students have 3
layers and width 192. Each goes through general distillation on news, the intermediate and the prediction stage, as many
steps of as many rows for all, and is judged on the evaluation split after its last step, so that nothing is chosen by
it. A seed is that of all three stages: weights, projections, order of texts and rows. Each command is a process of one
thread. Killed and started again, it goes on; OUT_DIR keeps everything. The table goes to OUT_DIR/NAME.md and results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_tools.quickstart_data import make_data
from tests.benchmarks.ablation import Run
from tests.benchmarks.ablation_inputs import once
from tests.benchmarks.measurement import RESULTS, environment_line
from tests.benchmarks.real_commands import run_to_the_end, write_table
from tinybert_ds.models.build import STUDENTS_DIR

TASK = "sst-2"
BATCH_ROWS = 16
LENGTH = 64


class Variant(NamedTuple):
    """A student and what it learns of the layers' attention."""

    heads: int
    flags: tuple[str, ...]


VARIANTS = {
    "12 heads, scores": Variant(12, ()),
    "8 heads, relations": Variant(8, ("--attention_loss", "relations")),
    "8 heads, relations_kl": Variant(8, ("--attention_loss", "relations_kl")),
    "8 heads, no attention loss": Variant(8, ("--attention_weight", "0")),
}


class Budget(NamedTuple):
    """Optimizer steps, and how much is read."""

    teacher: int
    general: int
    intermediate: int
    prediction: int
    documents: int | None = None  # None: all
    rows: int | None = None


USUAL = Budget(200, 120, 120, 120)
SMOKE = Budget(2, 2, 2, 2, documents=20, rows=64)


class Work:
    """Everything that was and will be made, in one folder."""

    def __init__(self, out: Path, budget: Budget) -> None:
        self.out, self.budget = out, budget
        data = out / "data"
        make_data(data, budget.documents, budget.rows)
        self.encoder, self.task = data / "teacher", data / "sentiment"
        self.shards, self.teacher = out / "shards", out / "teacher"
        if not (self.shards / "manifest.json").exists():
            words = ["--train_corpus", data / "documents" / "bbc_news.txt", "--bert_model", self.encoder]
            words += ["--output_dir", self.shards, "--split_sentences", "--max_seq_len", LENGTH]
            self._run("prepare_corpus", words, "shards")
        words = ["--model", self.encoder, *self._usual(budget.teacher, 5e-5)]
        self.teacher_score = self._train("finetune", words, self.teacher)

    def chain(self, name: str, seed: int) -> Run:
        """Take one student through its three stages."""
        variant, budget = VARIANTS[name], self.budget
        folder = self.out / f"seed-{seed}" / name.replace(", ", "-").replace(" ", "-")
        config = once(self.out / f"student-{variant.heads}.json", lambda path: write_student(path, variant.heads))
        general = folder / "general"
        if not (general / "model.safetensors").exists():
            words = ["--pregenerated_data", self.shards, "--teacher_model", self.encoder, "--student_model", config]
            words += ["--init", "svd", "--max_seq_length", LENGTH, "--train_batch_size", BATCH_ROWS, *variant.flags]
            words += ["--eval_fraction", 0, "--max_steps", budget.general, "--learning_rate", 1e-3, "--seed", seed]
            self._run("general_distill", [*words, "--output_dir", general], f"{folder.name}-{seed}-general")
        models = ["--teacher_model", self.teacher, "--seed", seed]
        words = ["--student_model", general, *models, *variant.flags, *self._usual(budget.intermediate, 1e-3)]
        self._train("task_distill", words, folder / "intermediate")
        words = ["--pred_distill", "--student_model", folder / "intermediate", *models]
        score = self._train("task_distill", [*words, *self._usual(budget.prediction, 5e-4)], folder / "prediction")
        return Run(TASK, name, seed, score)

    def _usual(self, steps: int, learning_rate: float) -> list[object]:
        words: list[object] = ["--data_dir", self.task, "--task_name", TASK, "--max_seq_length", LENGTH]
        words += ["--train_batch_size", BATCH_ROWS, "--eval_batch_size", 64, "--learning_rate", learning_rate]
        return [*words, "--max_steps", steps, "--eval_step", steps, "--save_steps", steps]

    def _train(self, stage: str, words: Sequence[object], folder: Path) -> float:
        """Run a command unless it is done; return its accuracy, 0 where it has none."""
        results = folder / "eval_results.json"
        if not results.exists():
            name = "-".join(folder.relative_to(self.out).parts)
            self._run(stage, [*words, "--output_dir", folder], name)
        found: dict[str, float] = json.loads(results.read_text(encoding="utf-8"))
        return found.get("eval_accuracy", 0.0)

    def _run(self, stage: str, words: Sequence[object], name: str) -> None:
        run_to_the_end(stage, words, self.out / "logs" / name)


def write_student(path: Path, heads: int) -> None:
    """Write the config of the shipped student of 3 layers with so many heads."""
    config = json.loads((STUDENTS_DIR / "3L_192.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "num_attention_heads": heads}, indent=2) + "\n", encoding="utf-8")


def table(runs: Sequence[Run], teacher: float) -> str:
    """Return a Markdown table: mean and standard deviation over the seeds, and each seed's accuracy."""
    seeds = sorted({run.seed for run in runs})
    lines = [f"Accuracy on {TASK}'s film reviews, in percent; the teacher has {100 * teacher:.1f}.", ""]
    lines += [f"| student | mean | std | {' | '.join(f'seed {seed}' for seed in seeds)} |"]
    lines += ["|---|---:|---:|" + "---:|" * len(seeds)]
    for name in dict.fromkeys(run.variant for run in runs):
        scores = {run.seed: 100 * run.score for run in runs if run.variant == name}
        spread = f"{statistics.stdev(scores.values()):.2f}" if len(scores) > 1 else ""
        each = " | ".join(f"{scores[seed]:.1f}" if seed in scores else "" for seed in seeds)
        lines.append(f"| {name} | {statistics.mean(scores.values()):.1f} | {spread} | {each} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("out_dir", type=Path)
    add("--seeds", type=int, nargs="+", default=[42, 43, 44])
    add("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT", help=str(list(VARIANTS)))
    add("--name", default="other_heads", help="of the table and the CSV (default: other_heads)")
    add("--smoke", action="store_true", help="a few steps, to see that it runs")
    add("--results", type=Path, default=RESULTS, help="folder of the table and the CSV")
    values = parser.parse_args(arguments)
    budget = SMOKE if values.smoke else USUAL
    work = Work(values.out_dir.resolve(), budget)
    runs = [work.chain(name, seed) for seed, name in product(values.seeds, values.only)]
    how = ", ".join(f"{name} {number}" for name, number in budget._asdict().items() if number is not None)
    head = f"Steps: {how}; batches of {BATCH_ROWS} rows of at most {LENGTH} tokens. "
    head += f"{environment_line()}.\n\n"
    text = head + table(runs, work.teacher_score)
    for folder in (work.out, values.results):
        write_table(folder, values.name, text, Run._fields, runs)
    print(text)


if __name__ == "__main__":
    main()
