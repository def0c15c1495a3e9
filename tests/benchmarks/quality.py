"""A yardstick of students' quality: chains of training with the same compute, on six real tasks, several seeds each.

    python tests/benchmarks/quality.py OUT_DIR --budget SECONDS --seeds 0 1 2 [--glue_dir DIR] [--tasks NAME...]
        [--arms NAME...] [--name quality]

For each task a real teacher (6 layers, width 384) is fine-tuned; that is no part of the budget. Each arm makes a
student (3 layers, width 192) of it with the real commands, in as many steps as the budget pays: SECONDS times 2e10
floating-point operations, a student's closed-form start included. Beside the metric on a test split that nothing was
chosen on stands the agreement with the teacher on unlabelled sentences of news: the mean KL divergence from its
predictions (of scores: the squared error over the variance of its own) and the share of equal decisions (of scores: the
correlation). The student from labels alone has the best of four rates on dev.tsv; an arm's general stage is the same
for all tasks and seeds. Killed and started again, it goes on; OUT_DIR keeps everything. The tables go to
OUT_DIR/NAME.md and results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from transformers import AutoConfig

from tests.benchmarks import ablation_inputs, quality_compute
from tests.benchmarks.measurement import RESULTS, environment_line
from tests.benchmarks.quality_compute import NOMINAL_FLOPS, Shape
from tests.benchmarks.quality_inputs import LONGEST, YARDSTICK, make_task, read_split, unlabelled
from tests.benchmarks.quality_judge import Judgement, judge, logits_of, mean_length
from tests.benchmarks.quality_tables import Result, tables
from tests.benchmarks.real_commands import run_to_the_end, write_table
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY
from tinybert_ds.models.build import STUDENTS_DIR

STUDENT = "3L_192"
BATCH_ROWS = 32
LABEL_RATES = (1e-4, 3e-4, 5e-4, 1e-3)


class Rates(NamedTuple):
    """Learning rates of the stages."""

    general: float
    intermediate: float
    prediction: float


PUBLISHED = Rates(5e-5, 5e-5, 3e-5)
FAR = Rates(1e-3, 1e-3, 5e-4)
"""Of a student that starts far from its teacher."""
NEAR = Rates(3e-4, 3e-4, 2e-4)
"""Of one that starts from its teacher in closed form."""
MUON = str(CONFIG_DIRECTORY / "zero0_muon_autocast_bf16.json")
DECAYING = ("--lr_schedule", "linear")  # the published intermediate stage has a constant rate


@dataclass(frozen=True)
class Arm:
    """A way to a student."""

    name: str
    init: str = ""  # of the general stage; "": there is none, and the student starts from the fine-tuned teacher
    rates: Rates = NEAR
    layers: tuple[str, ...] = DECAYING  # more flags of the intermediate stage
    predictions: tuple[str, ...] = ()  # of the prediction stage
    from_teacher: bool = True  # whether it starts, or goes on, from the fine-tuned teacher
    joint: tuple[str, ...] | None = None  # more flags of layers and predictions in one stage; None: in two
    more_text: bool = False  # whether the stages read sentences that nobody has labelled, too


LABELS = "labels alone"
INHERITED = "inherited"
BEFORE = "inherited, before its first step"
ARMS = (
    Arm(LABELS),
    Arm("published recipe", "random", PUBLISHED, (), from_teacher=False),
    Arm("published losses, best rates", "random", FAR, from_teacher=False),
    Arm("SVD start", "svd", FAR, from_teacher=False),
    Arm("inherited, general stage", "teacher"),
    Arm(INHERITED),
    Arm("inherited, relations", layers=(*DECAYING, "--attention_loss", "relations")),
    Arm("inherited, losses over variances", layers=(*DECAYING, "--loss_balance", "variance")),
    Arm("inherited, kl of predictions", predictions=("--prediction_loss", "kl")),
    Arm("inherited, joint", joint=DECAYING),
    Arm("inherited, joint, more text", joint=DECAYING, more_text=True),
    Arm("inherited, joint, Muon", joint=(*DECAYING, "--deepspeed_config", MUON)),
)
"""The student before its first step is judged with the arm `INHERITED`."""


class Budget(NamedTuple):
    """How much of everything."""

    flops: float
    teacher_steps: int = 250
    general_share: float = 1 / 3  # of the budget, where there is a general stage
    layer_share: float = 1 / 2  # of what is left to the task's two stages
    calibration_tokens: int = 32_768
    unlabelled_rows: int = 20_000
    more_rows: int = 10_000  # of other sentences, where an arm reads more text
    evaluations: int = 4


class Yardstick:
    """Everything that was and will be made, in one folder."""

    def __init__(self, out: Path, glue_dir: Path | None, budget: Budget) -> None:
        self.out, self.glue_dir, self.budget = out, glue_dir, budget
        self.data = ablation_inputs.fetch_teacher(out)
        self.encoder = self.data / "teacher"
        self.teacher_shape = Shape.of(AutoConfig.from_pretrained(self.encoder))
        self.student_shape = Shape.of(AutoConfig.from_pretrained(STUDENTS_DIR / f"{STUDENT}.json"))
        self.shards = out / "shards"
        every = unlabelled(self.data / "packages", budget.unlabelled_rows + budget.more_rows)
        assert len(every) == budget.unlabelled_rows + budget.more_rows, "the articles have fewer sentences"
        self.sentences, self.more = every[: budget.unlabelled_rows], every[budget.unlabelled_rows :]
        if not self.shards.exists():
            words = ["--train_corpus", self.data / "documents" / "bbc_news.txt", "--split_sentences"]
            words += ["--bert_model", self.encoder, "--output_dir", self.shards, "--max_seq_len", LONGEST]
            self.command("prepare_corpus", words, "shards")

    def prepare(self, task: str) -> float:
        """Make a task, its teacher and what that says of the test rows and the sentences; return its test score."""
        make_task(self.task(task), task, self.data / "packages", self.glue_dir)
        steps = self.budget.teacher_steps
        words = ["--model", self.encoder, *self._usual(self.task(task), steps, 5e-5, 1), "--seed", 1]
        self.train("finetune", words, self.teacher(task))
        kept = self.teacher(task) / "answers.npz"
        if not kept.exists():
            answers = {"sentences": self.answers(task, self.teacher(task))}
            with kept.with_suffix(".tmp").open("wb") as file:
                np.savez(file, **answers)
            kept.with_suffix(".tmp").rename(kept)
        return self._judged(task, self.teacher(task), self.teacher(task) / "judged.json").score

    def run(self, arm: Arm, task: str, seed: int) -> list[Result]:
        """Make the student of an arm and judge it."""
        folder = self.out / "runs" / task / f"seed-{seed}" / _slug(arm.name)
        if arm.name == LABELS:
            trained = self._from_labels(task, seed, self._best_label_rate(task))
            return [self._result(task, arm.name, seed, *trained)]
        start, spent, seconds = self._start(arm, task, seed, folder)
        left = self.budget.flops - spent
        data = self._with_more_text(task) if arm.more_text else self.task(task)
        tokens, length = self._batch(data)
        shapes = self.teacher_shape, self.student_shape
        layers = quality_compute.layer_step(*shapes, tokens, length)
        models = ["--teacher_model", self.teacher(task), "--seed", seed]
        if arm.joint is None:
            costs = [layers, quality_compute.prediction_step(*shapes, tokens, length)]
            shares = (self.budget.layer_share, 1 - self.budget.layer_share)
            steps = quality_compute.steps_within(left, costs, shares)
            words = [*models, "--student_model", start, *arm.layers]
            words += self._usual(data, steps[0], arm.rates.intermediate, 1)
            seconds += self.train("task_distill", words, folder / "intermediate")
            words = ["--pred_distill", *models, "--student_model", folder / "intermediate", *arm.predictions]
            words += self._usual(data, steps[1], arm.rates.prediction, self.budget.evaluations)
        else:
            costs = [layers]
            steps = quality_compute.steps_within(left, costs, (1,))
            words = ["--joint", *models, "--student_model", start, *arm.joint]
            words += self._usual(data, steps[0], arm.rates.intermediate, self.budget.evaluations)
        seconds += self.train("task_distill", words, folder / "student")
        done = sum(cost * count for cost, count in zip(costs, steps, strict=True))
        found = [self._result(task, arm.name, seed, folder / "student", (spent + done, seconds), sum(steps))]
        if arm.name == INHERITED:
            found.append(self._result(task, BEFORE, seed, start, (spent, 0.0), 0))
        return found

    def _start(self, arm: Arm, task: str, seed: int, folder: Path) -> tuple[Path, float, float]:
        """Return the student that the task's stages begin with, the operations that it has cost, and the seconds."""
        spent, seconds, student = 0.0, 0.0, Path(STUDENT)
        if arm.init:
            student, spent, seconds = self._general(arm)
        if not arm.from_teacher:
            return student, spent, seconds
        words = ["--teacher_model", self.teacher(task), "--student_model", student, "--data_dir", self.task(task)]
        words += ["--task_file", self.task(task) / "task.yaml", "--max_seq_length", LONGEST, "--seed", seed]
        words += ["--calibration_tokens", self.budget.calibration_tokens, "--output_dir", folder / "start"]
        seconds += self.once(folder / "start.json", lambda: self.command("inherit", words, _name(folder / "start")))
        return folder / "start", spent + self._start_cost(self._batch(self.task(task))[1]), seconds

    def _general(self, arm: Arm) -> tuple[Path, float, float]:
        """Return the student of an arm's general stage, which is the same for all tasks and seeds."""
        folder = self.out / "general" / f"{arm.init}-{arm.rates.general:g}"
        tokens, start, spent, seconds = BATCH_ROWS * LONGEST, ["--init", arm.init], 0.0, 0.0
        student = Path(STUDENT)
        corpus = ["--pregenerated_data", self.shards, "--teacher_model", self.encoder, "--max_seq_length", LONGEST]
        if arm.init == "teacher":  # on fewer tokens than --init teacher takes
            student, start = self.out / "general" / "start", ["--continue_train"]
            words = [*corpus, "--student_model", STUDENT, "--seed", 1, "--output_dir", student]
            words += ["--calibration_tokens", self.budget.calibration_tokens]
            seconds = self.once(student.with_suffix(".json"), lambda: self.command("inherit", words, "start"))
            spent = self._start_cost(LONGEST)
        cost = quality_compute.layer_step(self.teacher_shape, self.student_shape, tokens, LONGEST)
        budget = self.budget.flops * self.budget.general_share - spent
        (steps,) = quality_compute.steps_within(budget, [cost], [1.0])
        words = [*corpus, "--student_model", student, *start, "--train_batch_size", BATCH_ROWS, "--seed", 1]
        words += ["--eval_fraction", 0.01, "--max_steps", steps, "--learning_rate", arm.rates.general]
        seconds += self.train("general_distill", words, folder, results="model.safetensors")
        return folder, spent + steps * cost, seconds

    def _from_labels(self, task: str, seed: int, rate: float) -> tuple[Path, tuple[float, float], int]:
        """Train the student on labels alone; return it, what it has cost, and its steps."""
        tokens, length = self._batch(self.task(task))
        cost = quality_compute.label_step(self.student_shape, tokens, length)
        (steps,) = quality_compute.steps_within(self.budget.flops, [cost], [1.0])
        folder = self.out / "runs" / task / f"seed-{seed}" / f"labels-{rate:g}"
        words = ["--model", STUDENT, "--from_scratch", "--tokenizer", self.encoder, "--seed", seed]
        words += self._usual(self.task(task), steps, rate, self.budget.evaluations)
        seconds = self.train("finetune", words, folder)
        return folder, (steps * cost, seconds), steps

    def _best_label_rate(self, task: str) -> float:
        """Return the rate that is best on dev.tsv with seed 0."""
        found = {}
        for rate in LABEL_RATES:
            folder, _, _ = self._from_labels(task, 0, rate)
            results = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
            found[rate] = next(value for name, value in results.items() if name in ("eval_accuracy", "eval_spearman"))
        return max(found, key=lambda rate: found[rate])

    def _result(self, task: str, arm: str, seed: int, model: Path, cost: tuple[float, float], steps: int) -> Result:
        judged = self._judged(task, model, model / "judged.json")
        flops, seconds = cost
        return Result(task, arm, seed, *judged, steps, flops / NOMINAL_FLOPS, seconds)

    def _judged(self, task: str, model: Path, kept: Path) -> Judgement:
        if not kept.exists():
            with np.load(self.teacher(task) / "answers.npz") as answers:
                teacher = answers["sentences"]
            rows, references = read_split(self.task(task), "test")
            found = judge(logits_of(model, rows), references, self.answers(task, model), teacher)
            kept.write_text(json.dumps(found._asdict()) + "\n", encoding="utf-8")
        return Judgement(**json.loads(kept.read_text(encoding="utf-8")))

    def answers(self, task: str, model: Path) -> Any:
        """What a model says of the unlabelled sentences, or of each and the one behind it."""
        return logits_of(model, self._rows_of(self.sentences, task))

    def _rows_of(self, sentences: Sequence[str], task: str) -> list[tuple[str, ...]]:
        """Rows of a task out of sentences: each, or each and the one behind it."""
        pairs = len(read_split(self.task(task), "test")[0][0]) == 2
        following = [*sentences[1:], sentences[0]]
        return list(zip(sentences, following, strict=True)) if pairs else [(text,) for text in sentences]

    def _with_more_text(self, task: str) -> Path:
        """Return the folder of a task whose training rows, without labels, have other sentences among them."""

        def make(target: Path) -> None:
            shutil.copytree(self.task(task), target, ignore=shutil.ignore_patterns("train.tsv", ".*", "length.json"))
            rows = [*read_split(self.task(task), "train")[0], *self._rows_of(self.more, task)]
            lines = ["\t".join(["first", "second"][: len(rows[0])]), *("\t".join(row) for row in rows)]
            (target / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

        return ablation_inputs.once(self.task(f"{task}-more-text"), make)

    def _batch(self, data: Path) -> tuple[float, float]:
        """Return the mean tokens of a batch and of a row of the training split in a folder."""
        kept = data / "length.json"
        if not kept.exists():
            rows = [line.split("\t") for line in (data / "train.tsv").read_text(encoding="utf-8").split("\n")[:-1]]
            texts = [name for name in ("first", "second") if name in rows[0]]
            kept.write_text(json.dumps(mean_length(self.encoder, [tuple(row[: len(texts)]) for row in rows[1:]])))
        length = float(json.loads(kept.read_text()))
        return BATCH_ROWS * length, length

    def _start_cost(self, length: float) -> float:
        shapes = self.teacher_shape, self.student_shape
        return quality_compute.start_flops(*shapes, self.budget.calibration_tokens, length)

    def task(self, name: str) -> Path:
        return self.out / "tasks" / name

    def teacher(self, name: str) -> Path:
        return self.out / "teachers" / name

    def _usual(self, data: Path, steps: int, learning_rate: float, evaluations: int) -> list[object]:
        words: list[object] = ["--data_dir", data, "--task_file", data / "task.yaml"]
        words += ["--train_batch_size", BATCH_ROWS, "--eval_batch_size", 64, "--max_steps", steps]
        words += ["--eval_step", max(1, steps // evaluations), "--save_steps", steps, "--save_total_limit", 1]
        return [*words, "--learning_rate", learning_rate, "--logging_steps", max(1, steps // 4)]

    def train(self, stage: str, words: Sequence[object], folder: Path, results: str = "eval_results.json") -> float:
        """Run a training command to its end, if that is not done; return the seconds that it took."""

        def command() -> None:
            if not (folder / results).exists():
                self.command(stage, [*words, "--output_dir", folder], _name(folder))

        return self.once(folder.with_name(f"{folder.name}.seconds.json"), command)

    def once(self, kept: Path, action: Any) -> float:
        """Do something whose seconds are kept, once."""
        if not kept.exists():
            begin = time.monotonic()
            action()
            kept.write_text(json.dumps(time.monotonic() - begin), encoding="utf-8")
        return float(json.loads(kept.read_text(encoding="utf-8")))

    def command(self, stage: str, words: Sequence[object], name: str) -> None:
        run_to_the_end(stage, words, self.out / "logs" / name)


def _name(folder: Path) -> str:
    return "-".join(folder.parts[-3:]).replace(".", "_")  # what follows a point would be taken for a suffix


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the yardstick."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    names = [arm.name for arm in ARMS]
    add("out_dir", type=Path)
    add("--budget", type=float, required=True, metavar="SECONDS", help=f"of {NOMINAL_FLOPS:g} operations each")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--glue_dir", type=Path, help="the folder of the tasks' folders; without it there is no sst-2 and sts-b")
    add("--tasks", nargs="+", choices=YARDSTICK, help="default: all that there is data for")
    add("--arms", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    add("--name", default="quality", help="of the tables and the CSV (default: quality)")
    add("--smoke", action="store_true", help="a few rows and steps, to see that it runs")
    add("--results", type=Path, default=RESULTS, help="folder of the tables and the CSV")
    values = parser.parse_args(arguments)
    chosen = values.tasks or [name for name, task in YARDSTICK.items() if values.glue_dir or not task.of_glue]
    budget = Budget(values.budget * NOMINAL_FLOPS)
    if values.smoke:
        budget = budget._replace(teacher_steps=2, calibration_tokens=1000, unlabelled_rows=64, evaluations=1)
    glue_dir = values.glue_dir and values.glue_dir.resolve()
    work = Yardstick(values.out_dir.resolve(), glue_dir, budget)
    found: list[Result] = []
    teachers: dict[str, float] = {}
    for task in chosen:
        teachers[task] = work.prepare(task)
        for seed in values.seeds:
            for arm in (arm for arm in ARMS if arm.name in values.arms):
                if arm.more_text and not YARDSTICK[task].labels:
                    continue  # scores are learned from labels, too
                found += work.run(arm, task, seed)
            how = f"Budget: {values.budget:g} s of {NOMINAL_FLOPS:g} operations; {budget._asdict()}."
            text = f"{how} {environment_line()}.\n\n{tables(found, teachers)}"
            write_table(work.out, values.name, text, Result._fields, found)
    write_table(values.results, values.name, text, Result._fields, found)
    print(text)


if __name__ == "__main__":
    main()
