"""Learning rates of a small student by stage, beside each other after the same steps.

    python tests/benchmarks/rates.py OUT_DIR [--task snippets] [--steps 100] [--rates 1e-4 3e-4 1e-3 3e-3]

OUT_DIR is that of `quality.py`, whose teacher of the task is taken. The general stage starts from the pre-trained
encoder in closed form, the intermediate and the joint stage from the fine-tuned teacher, the prediction stage from the
intermediate stage at its best rate. Rates are judged by held-out losses, of stages with predictions by the metric on
dev.tsv and the divergence from the teacher on unlabelled sentences: never on the test split. `muon` is the joint stage
with the shipped config of Muon, whose `muon_lr` is the rate then, beside 3e-4 for the rest. Killed and started again,
it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from tests.benchmarks.measurement import RESULTS, environment_line
from tests.benchmarks.quality import BATCH_ROWS, DECAYING, MUON, NEAR, STUDENT, Budget, Yardstick
from tests.benchmarks.quality_inputs import LONGEST, read_split
from tests.benchmarks.quality_judge import judge, logits_of

COLUMNS = ("stage", "learning rate", "attention loss", "hidden loss", "metric on dev", "divergence", "equal")


class Sweep:
    """The runs of one task in the folder of the yardstick."""

    def __init__(self, work: Yardstick, task: str, steps: int) -> None:
        self.work, self.task, self.steps = work, task, steps
        self.folder = work.out / f"rates-{task}-{steps}"
        self.rows: list[Sequence[str]] = []
        work.prepare(task)

    def general(self, rates: Sequence[float]) -> None:
        """Distil on text, from the pre-trained encoder."""
        corpus = ["--pregenerated_data", self.work.shards, "--teacher_model", self.work.encoder]
        corpus += ["--max_seq_length", LONGEST, "--seed", 1]
        start = self.folder / "general-start"
        words = [*corpus, "--student_model", STUDENT, "--calibration_tokens", self.work.budget.calibration_tokens]
        self._start(words, start)
        for rate in rates:
            words = [*corpus, "--student_model", start, "--continue_train", "--eval_fraction", 0.01]
            words += ["--train_batch_size", BATCH_ROWS, "--max_steps", self.steps, "--eval_steps", self.steps]
            found = self._run("general_distill", words, "general", rate)
            self._note("general", rate, found)

    def layers(self, rates: Sequence[float]) -> float:
        """Distil layers on the task; return the best rate by the sum of the held-out losses."""
        models = ["--teacher_model", self.work.teacher(self.task), "--seed", 1]
        data = ["--data_dir", self.work.task(self.task), "--task_file", self.work.task(self.task) / "task.yaml"]
        words = [*models, *data, "--student_model", STUDENT, "--max_seq_length", LONGEST]
        self._start([*words, "--calibration_tokens", self.work.budget.calibration_tokens], self.folder / "start")
        losses = {}
        for rate in rates:
            words = [*models, "--student_model", self.folder / "start", *self._usual(), *DECAYING]
            found = self._run("task_distill", words, "intermediate", rate)
            self._note("intermediate", rate, found)
            losses[rate] = found["eval_loss"]
        return min(losses, key=lambda rate: losses[rate])

    def predictions(self, stage: str, rates: Sequence[float], student: Path, *flags: object) -> None:
        """Distil predictions, alone or with layers."""
        for rate in rates:
            words = [*flags, "--teacher_model", self.work.teacher(self.task), "--student_model", student, "--seed", 1]
            found = self._run("task_distill", [*words, *self._usual()], stage, rate)
            self._note(stage, rate, found, self.folder / f"{stage}-{rate:g}")

    def muon(self, rates: Sequence[float]) -> None:
        """Distil layers and predictions by Muon, at rates of its own."""
        config = json.loads(Path(MUON).read_text(encoding="utf-8"))
        for rate in rates:
            config["optimizer"]["params"]["muon_lr"] = rate
            written = self.folder / f"muon-{rate:g}.json"
            written.write_text(json.dumps(config), encoding="utf-8")
            words = ["--joint", "--teacher_model", self.work.teacher(self.task), "--seed", 1, *DECAYING]
            words += ["--student_model", self.folder / "start", *self._usual(), "--deepspeed_config", written]
            found = self._run("task_distill", words, f"muon-{rate:g}", NEAR.intermediate)
            self._note("muon", rate, found, self.folder / f"muon-{rate:g}-{NEAR.intermediate:g}")

    def _usual(self) -> list[object]:
        folder = self.work.task(self.task)
        words: list[object] = ["--data_dir", folder, "--task_file", folder / "task.yaml", "--eval_batch_size", 64]
        words += ["--train_batch_size", BATCH_ROWS, "--max_steps", self.steps, "--eval_step", self.steps]
        return words

    def _start(self, words: Sequence[object], folder: Path) -> None:
        if not (folder / "model.safetensors").exists():
            self.work.command("inherit", [*words, "--output_dir", folder], f"rates-{folder.name}")

    def _run(self, stage: str, words: Sequence[object], name: str, rate: float) -> dict[str, float]:
        """Run a stage at a rate; return its last results."""
        folder = self.folder / f"{name}-{rate:g}"
        words = [*words, "--learning_rate", rate, "--save_steps", self.steps, "--logging_steps", self.steps]
        if not (folder / "model.safetensors").exists():
            self.work.command(stage, [*words, "--output_dir", folder], f"rates-{name}-{rate:g}".replace(".", "_"))
        results: dict[str, float] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["finished"]["results"]
        return results

    def _note(self, stage: str, rate: float, found: dict[str, float], model: Path | None = None) -> None:
        metric = next((found[name] for name in ("eval_accuracy", "eval_spearman") if name in found), None)
        shown = [found.get("eval_attention_loss"), found.get("eval_hidden_loss"), metric, None, None]
        if model is not None:
            with np.load(self.work.teacher(self.task) / "answers.npz") as kept:
                teacher = kept["sentences"]
            rows, references = read_split(self.work.task(self.task), "dev")
            answers = self.work.answers(self.task, model)
            judged = judge(logits_of(model, rows), references, answers, teacher[: len(answers)])
            shown[3:] = [judged.divergence, judged.equal]
        self.rows.append([stage, f"{rate:g}", *("" if value is None else f"{value:.4f}" for value in shown)])
        print(self.rows[-1], flush=True)

    def table(self) -> str:
        """Return Markdown."""
        lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("out_dir", type=Path)
    add("--task", default="snippets")
    add("--steps", type=int, default=100)
    add("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3])
    add("--muon_rates", type=float, nargs="+", default=[1e-3, 5e-3, 2e-2])
    add("--stages", nargs="+", default=["intermediate", "prediction", "joint", "general"])
    add("--glue_dir", type=Path, help="for sst-2 and sts-b")
    add("--rows", type=int, default=20_000, help="unlabelled sentences")
    add("--name", default="rates", help="of the table (default: rates)")
    add("--results", type=Path, default=RESULTS)
    values = parser.parse_args(arguments)
    work = Yardstick(values.out_dir.resolve(), values.glue_dir, Budget(0.0, unlabelled_rows=values.rows))
    sweep = Sweep(work, values.task, values.steps)
    best = sweep.layers(values.rates)
    if "prediction" in values.stages:
        student = sweep.folder / f"intermediate-{best:g}"
        sweep.predictions("prediction", values.rates, student, "--pred_distill")
    if "joint" in values.stages:
        sweep.predictions("joint", values.rates, sweep.folder / "start", "--joint")
    if "muon" in values.stages:
        sweep.muon(values.muon_rates)
    if "general" in values.stages:
        sweep.general(values.rates)
    text = f"{values.task}, {values.steps} steps of {BATCH_ROWS}. {environment_line()}.\n\n{sweep.table()}"
    values.results.mkdir(parents=True, exist_ok=True)
    (values.results / f"{values.name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
