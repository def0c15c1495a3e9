"""What augmentation and each loss are worth: the chain of task distillation with and without them, several seeds each.

    python tests/benchmarks/ablation.py OUT_DIR --glue_dir DIR [--tasks sst-2 sts-b] [--seeds 42 43 44] [--jobs 2]
        [--chains NAME...] [--intermediate_steps N] [--name ablation]

For each task a real teacher (6 layers, width 384) is fine-tuned on all its rows. The student (3 layers, width 192)
comes from a short general distillation over 0.8 million words and sees so many rows of the task, through the
intermediate and the prediction stage, a fixed number of steps of 32 rows each; with augmentation the rows are enlarged
beforehand, as published (of STS-B those of the intermediate stage alone). Judged on the evaluation split after the last
step, so that nothing is chosen by it. Seeds are those of the task's stages: heads, projections, dropout, order of rows.
Each job is a process of one thread. Killed and started again, it goes on; OUT_DIR keeps everything. The table goes to
OUT_DIR/NAME.md and results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import ablation_inputs as inputs
from tests.benchmarks.measurement import RESULTS, environment_line
from tests.benchmarks.real_commands import run_to_the_end, write_table
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tasks import TASKS

BATCH_ROWS = 32
WHOLE = "everything"


Chain = tuple[tuple[str, ...] | None, bool, bool]


@dataclass(frozen=True)
class Variant:
    """A chain; the flags of its two stages beside those that all have."""

    name: str
    intermediate: tuple[str, ...] | None = ()  # None: the stage is left out
    prediction: tuple[str, ...] = ()
    augmented: bool = True
    general: bool = True  # False: the student starts with random layers, its embeddings from the teacher's
    kind: str = ""  # of tasks: "scores", "labels", or both

    @property
    def shared(self) -> Chain:
        """What variants have in common that differ in their prediction stages alone."""
        return self.intermediate, self.augmented, self.general


VARIANTS = (
    Variant(WHOLE),
    Variant("without augmentation", augmented=False),
    Variant("without attention loss", ("--attention_weight", "0")),
    Variant("without hidden loss", ("--hidden_weight", "0")),
    Variant("without embedding loss", ("--embedding_weight", "0")),
    Variant("without intermediate stage", None),
    Variant("without general distillation", general=False),
    Variant(
        "gold labels instead of predictions",
        prediction=("--prediction_weight", "0", "--label_weight", "1"),
        kind="labels",
    ),
    Variant("the teacher's scores instead of gold", prediction=("--regression_target", "teacher"), kind="scores"),
)


class Budget(NamedTuple):
    """How much of everything."""

    rows: int  # of a task's training file, for the students; the teacher has all
    eval_rows: int  # of its evaluation file, at most
    copies: int  # N of the augmentation
    masked_lm_steps: int
    general_steps: int
    teacher_steps: int
    intermediate_steps: int
    prediction_steps: int


USUAL = Budget(2000, 1000, 3, 150, 800, 220, 120, 192)
SMOKE = Budget(64, 64, 1, 2, 2, 2, 2, 2)


class Run(NamedTuple):
    """Where the results of a run are."""

    task: str
    variant: str
    seed: int
    score: float


class Work:
    """Everything that was and will be made, in one folder."""

    def __init__(self, out: Path, glue_dir: Path, budget: Budget, chains: Sequence[str]) -> None:
        self.out, self.glue_dir, self.budget = out, glue_dir, budget
        self.variants = {number: variant for number, variant in enumerate(VARIANTS) if variant.name in chains}
        data = inputs.fetch_teacher(out)
        self.encoder = data / "teacher"
        self.masked_lm = inputs.make_masked_lm(out, data / "documents" / "bbc_news.txt", budget.masked_lm_steps)
        self.glove = inputs.make_glove(out)
        self.general = self._distill_generally(data / "documents" / "bbc_news.txt")

    def prepare_task(self, spec: TaskSpec) -> None:
        """Cut a task to its rows, enlarge them, and fine-tune its teacher on all rows."""
        budget = self.budget
        whole = self.out / "whole_tasks" / spec.name
        inputs.make_task(whole, spec, self.glue_dir, train_rows=None, eval_rows=budget.eval_rows)
        inputs.make_task(self.task(spec), spec, self.glue_dir, train_rows=budget.rows, eval_rows=budget.eval_rows)
        words = ["--pretrained_bert_model", self.masked_lm, "--glove_embs", self.glove, "--data_dir", self.task(spec)]
        words += ["--task_name", spec.name, "--N", budget.copies, "--num_workers", 1, "--dtype", "fp32"]
        self._run("augment_task", words, f"augmentation-{spec.name}")
        words = ["--model", self.encoder, "--data_dir", whole]
        words += self._usual(spec, budget.teacher_steps, 5e-5)
        self._train("finetune", words, self.teacher(spec))

    def chain(self, spec: TaskSpec, seed: int, shared: Chain) -> list[Run]:
        """Run an intermediate stage and every prediction stage behind it."""
        intermediate, augmented, general = shared
        student = self.general if general else inputs.make_student(self.out, self.encoder, seed)
        models = ["--teacher_model", self.teacher(spec), "--data_dir", self.task(spec), "--seed", seed]
        enlarged = ["--aug_train"] if augmented else []
        name = "none" if intermediate is None else "-".join(intermediate).strip("-") or "all"
        runs = self.out / f"runs-{self.budget.intermediate_steps}"
        name = name if augmented else "unaugmented"
        folder = runs / spec.name / f"seed-{seed}" / (name if general else "ungeneral")
        if intermediate is not None:
            words = ["--student_model", student, *models, *enlarged, *intermediate]
            words += self._usual(spec, self.budget.intermediate_steps, 1e-3)
            self._train("task_distill", words, folder / "intermediate")
            student = folder / "intermediate"
        found = []
        for number, variant in self.variants.items():
            if variant.shared != shared or variant.kind not in ("", "scores" if spec.kind == "scores" else "labels"):
                continue
            words = ["--pred_distill", "--student_model", student, *models, *variant.prediction]
            words += [] if spec.kind == "scores" else enlarged  # scores belong to the texts as they were
            words += self._usual(spec, self.budget.prediction_steps, 5e-4)
            results = self._train("task_distill", words, folder / f"prediction-{number}")
            score = results["eval_score" if len(spec.official) > 1 else f"eval_{spec.official[0]}"]
            found.append(Run(spec.name, variant.name, seed, score))
        return found

    def _distill_generally(self, documents: Path) -> Path:
        """Return a student that learned from the encoder over the documents."""
        folder = self.out / "general"
        if (folder / "model.safetensors").exists():
            return folder
        words = ["--train_corpus", documents, "--split_sentences", "--bert_model", self.encoder]
        self._run("prepare_corpus", [*words, "--output_dir", self.out / "shards", "--max_seq_len", 64], "shards")
        steps = self.budget.general_steps
        words = ["--pregenerated_data", self.out / "shards", "--teacher_model", self.encoder, "--max_seq_length", 64]
        words += ["--student_model", inputs.STUDENT, "--init", "svd", "--train_batch_size", BATCH_ROWS]
        words += ["--eval_fraction", 0.01, "--max_steps", steps, "--save_steps", max(1, steps // 2)]
        words += ["--learning_rate", 1e-3, "--logging_steps", max(1, steps // 8), "--output_dir", folder]
        self._run("general_distill", words, "general")
        return folder

    def task(self, spec: TaskSpec) -> Path:
        return self.out / "tasks" / spec.name

    def teacher(self, spec: TaskSpec) -> Path:
        return self.out / "teachers" / spec.name

    def _usual(self, spec: TaskSpec, steps: int, learning_rate: float) -> list[object]:
        words: list[object] = ["--task_name", spec.name, "--max_seq_length", 64, "--train_batch_size", BATCH_ROWS]
        words += ["--eval_batch_size", 64, "--max_steps", steps, "--eval_step", steps, "--save_steps", steps]
        return [*words, "--learning_rate", learning_rate, "--logging_steps", max(1, steps // 4)]

    def _train(self, stage: str, words: Sequence[object], folder: Path) -> dict[str, float]:
        results = folder / "eval_results.json"
        if not results.exists():
            name = "-".join(folder.relative_to(self.out).parts)
            self._run(stage, [*words, "--output_dir", folder], name)
        found: dict[str, float] = json.loads(results.read_text(encoding="utf-8"))
        return found

    def _run(self, stage: str, words: Sequence[object], name: str) -> None:
        run_to_the_end(stage, words, self.out / "logs" / name)


def run_all(work: Work, tasks: Sequence[TaskSpec], seeds: Sequence[int], jobs: int) -> list[Run]:
    """Run everything, so many chains at a time."""
    for seed in seeds:  # here, because two jobs would write them at once
        inputs.make_student(work.out, work.encoder, seed)
    chains = list(dict.fromkeys(variant.shared for variant in work.variants.values()))
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work.prepare_task, tasks))
        places = [(spec, seed, chain) for seed, spec, chain in product(seeds, tasks, chains)]
        pending = [pool.submit(work.chain, *place) for place in places]
        try:
            return [run for chain in pending for run in chain.result()]
        finally:
            pool.shutdown(cancel_futures=True)


def table(runs: Sequence[Run], teachers: Mapping[str, float]) -> str:
    """Return a Markdown table for each task: mean and standard deviation over the seeds, and each seed's score."""
    lines = []
    for task in dict.fromkeys(run.task for run in runs):
        seeds = sorted({run.seed for run in runs if run.task == task})
        scores = {run.variant: [] for run in runs if run.task == task}
        for run in sorted((run for run in runs if run.task == task), key=lambda run: run.seed):
            scores[run.variant].append(run.score)
        lines += [f"### {task}: {' and '.join(TASKS[task].official)}, teacher {100 * teachers[task]:.1f}", ""]
        lines += [f"| chain | mean | std | difference | {' | '.join(f'seed {seed}' for seed in seeds)} |"]
        lines += ["|---|---:|---:|---:|" + "---:|" * len(seeds)]
        whole = statistics.mean(scores[WHOLE])
        for variant, found in scores.items():
            spread = f"{100 * statistics.stdev(found):.2f}" if len(found) > 1 else ""
            difference = "" if variant == WHOLE else f"{100 * (statistics.mean(found) - whole):+.1f}"
            each = " | ".join(f"{100 * score:.1f}" for score in found)
            lines.append(f"| {variant} | {100 * statistics.mean(found):.1f} | {spread} | {difference} | {each} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ablation."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("out_dir", type=Path)
    add("--glue_dir", type=Path, required=True, help="the folder of the tasks' folders")
    add("--tasks", nargs="+", choices=TASKS, default=["sst-2", "sts-b"])
    add("--seeds", type=int, nargs="+", default=[42, 43, 44])
    add("--jobs", type=int, default=os.cpu_count() or 1, help="chains at a time (default: one for each core)")
    names = [variant.name for variant in VARIANTS]
    add("--chains", nargs="+", choices=names, default=names, metavar="NAME", help=f"beside {WHOLE}; all: {names[1:]}")
    add("--intermediate_steps", type=int, metavar="N", help=f"default: {USUAL.intermediate_steps}")
    add("--name", default="ablation", help="of the table and the CSV (default: ablation)")
    add("--smoke", action="store_true", help="a few rows and steps, to see that it runs")
    add("--results", type=Path, default=RESULTS, help="folder of the table and the CSV")
    values = parser.parse_args(arguments)
    budget = SMOKE if values.smoke else USUAL
    if values.intermediate_steps is not None:
        budget = budget._replace(intermediate_steps=values.intermediate_steps)
    tasks = [TASKS[name] for name in values.tasks]
    work = Work(values.out_dir.resolve(), values.glue_dir.resolve(), budget, [WHOLE, *values.chains])
    runs = run_all(work, tasks, values.seeds, values.jobs)
    teachers = {run.task: 0.0 for run in runs}
    for spec in tasks:
        found = json.loads((work.teacher(spec) / "eval_results.json").read_text(encoding="utf-8"))
        teachers[spec.name] = found["eval_score" if len(spec.official) > 1 else f"eval_{spec.official[0]}"]
    how = ", ".join(f"{name} {value}" for name, value in budget._asdict().items())
    head = f"Budget: {how}; batches of {BATCH_ROWS}. {environment_line()}.\n\n"
    text = head + table(runs, teachers)
    for folder in (work.out, values.results):
        write_table(folder, values.name, text, Run._fields, runs)
    print(text)


if __name__ == "__main__":
    main()
