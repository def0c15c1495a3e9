"""Distilled students of other targets beside students of labels alone: tags, several labels, scores from a column.

    python tests/benchmarks/other_targets.py OUT_DIR --data DIR --texts FILE [--rows tags multi_label scores]
        [--seeds 42 43 44] [--smoke]

DIR holds bc5cdr/{train,devel,test}.tsv.xz (a word and its tag a line), and GLUE's SST-2 and STS-B below glue/; FILE is
text for general distillation, a paragraph a line. The teacher is a real encoder of 6 layers and width 384, fine-tuned
on each task; the student has 3 layers and width 192 (7.3 M parameters) and comes from a short general distillation that
all share. It goes on from each task's teacher in closed form and is distilled in two stages, or is trained on the
labels alone for as many steps, the better of two rates by the evaluation split. Of SST-2 the labels of a row are its
sentiment, whether it has more than 20 words and whether it has a comma. The student of scores reads what label_rows.py
wrote of its teacher, and no label. Tags are judged on test.tsv.xz, the others on their dev split after the last step. A
seed is that of heads, projections and the order of rows. Each command is a process of one thread. Killed and started
again, it goes on; the table goes to OUT_DIR/other_targets.md and results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in every process that starts from here
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.ablation_inputs import STUDENT, fetch_teacher, once
from tests.benchmarks.measurement import RESULTS, environment_line
from tests.benchmarks.real_commands import run_to_the_end, write_table

LABEL_RATES = (3e-4, 1e-3)
CALIBRATION_TOKENS = 50_000


class Budget(NamedTuple):
    """Optimizer steps of 32 rows, and lines of text."""

    teacher: int
    general: int
    intermediate: int
    prediction: int
    lines: int


USUAL, SMOKE = Budget(450, 400, 450, 450, 40_000), Budget(2, 2, 2, 2, 400)


class Task(NamedTuple):
    """What a row of the table needs."""

    yaml: str
    metric: str
    length: int
    split: str  # that it is judged on
    longer: int = 1  # times as many steps of the student


TASKS = {
    "tags": Task(
        "target: tags\nfiles: {{train: {data}/bc5cdr/train.tsv.xz, dev: {data}/bc5cdr/devel.tsv.xz, "
        "test: {data}/bc5cdr/test.tsv.xz}}\ntext: 0\nlabel: 1\nscheme: BIO\nlabels: [Chemical, Disease]\n"
        "metric: entity_f1\n{more}",
        "entity_f1",
        96,
        "test",
    ),
    "multi_label": Task(
        "target: multi_label\nfiles: {{train: train.tsv, dev: dev.tsv}}\ntext: sentence\nlabel: labels\n"
        "labels: [positive, long, comma]\nmetric: [micro_f1, macro_f1]\n{more}",
        "score",
        64,
        "dev",
    ),
    "scores": Task(
        "target: scores\nfiles: {{train: {train}, dev: {data}/glue/STS-B/dev.tsv}}\ntext: [sentence1, sentence2]\n"
        "label: score\nscore_range: [0, 5]\nmetric: spearman\n{more}",
        "spearman",
        96,
        "dev",
        longer=3,
    ),
}


class Work:
    """Everything that was and will be made, in one folder."""

    def __init__(self, out: Path, data: Path, texts: Path, budget: Budget) -> None:
        self.out, self.data, self.texts, self.budget = out, data.resolve(), texts, budget

    def prepare(self) -> None:
        """Make the teacher, the shards, the general student and the tasks' files."""
        self.encoder = fetch_teacher(self.out) / "teacher"

        def cut(path: Path) -> None:
            with self.texts.open(encoding="utf-8") as file:
                path.write_text("".join(line for line, _ in zip(file, range(self.budget.lines), strict=False)))

        texts = once(self.out / "texts.txt", cut)
        words = ["--train_corpus", texts, "--split_sentences", "--bert_model", self.encoder]
        self._run("prepare_corpus", [*words, "--output_dir", self.out / "shards", "--max_seq_len", 64], "shards")
        words = ["--pregenerated_data", self.out / "shards", "--teacher_model", self.encoder]
        words += ["--student_model", STUDENT, "--train_batch_size", 32, "--learning_rate", 1e-3]
        words += ["--max_steps", self.budget.general, "--output_dir", self.general]
        self._run("general_distill", words, "general")
        once(self.out / "tasks" / "multi_label", self._write_several_labels)
        for name in TASKS:
            self.task_file(name, "task")

    @property
    def general(self) -> Path:
        return self.out / "general"

    def task_file(self, name: str, kind: str) -> Path:
        """Write a task file; of kind "columns" the one that reads a teacher's answers."""
        folder = self.out / "tasks" / name
        folder.mkdir(parents=True, exist_ok=True)
        columns = kind == "columns"
        train = folder / "labelled.jsonl" if columns else self.data / "glue" / "STS-B" / "train.tsv"
        more = "teacher: {columns: teacher, kind: scores}\n" if columns else ""
        path = folder / f"{kind}.yaml"
        path.write_text(TASKS[name].yaml.format(data=self.data, train=train, more=more), encoding="utf-8")
        return path

    def _write_several_labels(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for split in ("train", "dev"):
            lines = (self.data / "glue" / "SST-2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
            rows = ["sentence\tlabels"]
            for text, _, label in (line.rpartition("\t") for line in lines):
                holds = {"positive": label == "1", "long": len(text.split()) > 20, "comma": "," in text}
                rows.append(f"{text}\t{'|'.join(name for name, value in holds.items() if value)}")
            (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def row(self, name: str, seed: int) -> dict[str, float]:
        """Return the figures of teacher, distilled student and student of labels alone; some are missing of scores."""
        task, budget, folder = TASKS[name], self.budget, self.out / name / f"seed-{seed}"
        teacher = folder / "teacher"
        layer_steps, prediction_steps = task.longer * budget.intermediate, task.longer * budget.prediction
        steps, rate = layer_steps + prediction_steps, ["--seed", seed, "--max_seq_length", task.length]
        words = ["--model", self.encoder, *rate, "--learning_rate", 5e-5, "--max_steps", budget.teacher]
        self._learn("finetune", name, words, teacher)
        if name == "scores":
            labelled = self.out / "tasks" / name / "labelled.jsonl"
            words = ["--model", self.out / name / "seed-42" / "teacher", "--output", labelled]
            words += ["--data_dir", labelled.parent, "--task_file", self.task_file(name, "task")]
            self._run("label_rows", [*words, "--max_seq_length", task.length], "labelling")
        start, task_file = folder / "start", self.task_file(name, "task")
        words = ["--teacher_model", teacher, "--student_model", self.general, "--data_dir", task_file.parent, *rate]
        words += ["--task_file", task_file, "--calibration_tokens", CALIBRATION_TOKENS, "--output_dir", start]
        self._run("inherit", words, f"{name}-{folder.name}-start")
        words = ["--teacher_model", teacher, "--student_model", start, *rate, "--learning_rate", 1e-3]
        self._learn("task_distill", name, [*words, "--max_steps", layer_steps], folder / "intermediate")
        kind, of_teacher = ("columns", []) if name == "scores" else ("task", ["--teacher_model", teacher])
        self.task_file(name, kind)
        words = ["--pred_distill", *of_teacher, "--student_model", folder / "intermediate", *rate]
        words += ["--learning_rate", 5e-4, "--max_steps", prediction_steps]
        self._learn("task_distill", name, words, folder / "student", kind=kind)
        figures = {"teacher": self._figure(name, teacher), "distilled": self._figure(name, folder / "student")}
        if name != "scores":
            rivals = []
            for learning_rate in LABEL_RATES:
                rival = folder / f"labels-{learning_rate:g}"
                words = ["--model", self.general, *rate, "--learning_rate", learning_rate, "--max_steps", steps]
                rivals.append((self._learn("finetune", name, words, rival), rival))
            figures["labels alone"] = self._figure(name, max(rivals, key=lambda found: found[0])[1])
        return figures

    def _learn(self, stage: str, name: str, words: Sequence[object], output: Path, *, kind: str = "task") -> float:
        common = ["--data_dir", self.out / "tasks" / name, "--task_file", self.out / "tasks" / name / f"{kind}.yaml"]
        common += ["--train_batch_size", 32, "--eval_step", 150, "--output_dir", output]
        self._run(stage, [*words, *common], f"{name}-{output.parent.name}-{output.name}")
        results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
        return float(results.get(f"eval_{TASKS[name].metric}", 0.0))

    def _figure(self, name: str, model: Path) -> float:
        task, output = TASKS[name], model.with_name(f"{model.name}-judged")
        judged = self.task_file(name, "task").with_name("judged.yaml")
        text = self.task_file(name, "task").read_text(encoding="utf-8")
        judged.write_text(f"{text}eval_split: {task.split}\n", encoding="utf-8")
        words = ["--do_eval", "--student_model", model, "--data_dir", judged.parent, "--task_file", judged]
        words += ["--max_seq_length", task.length, "--output_dir", output]
        self._run("task_distill", words, f"{name}-{model.parent.name}-{output.name}")
        return float(json.loads((output / "eval_results.json").read_text(encoding="utf-8"))[f"eval_{task.metric}"])

    def _run(self, stage: str, words: Sequence[object], name: str) -> None:
        done, log = self.out / "logs" / f"{name}.done", self.out / "logs" / name
        if done.exists():
            return
        run_to_the_end(stage, words, log)
        done.touch()


def table(found: Sequence[tuple[str, int, dict[str, float]]]) -> str:
    """Return the Markdown table: a line for each target, mean and standard error over its seeds."""
    lines = ["| target | metric | seeds | teacher | distilled | labels alone |", "|---|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(name for name, _, _ in found):
        rows = [figures for target, _, figures in found if target == name]
        cells = []
        for column in ("teacher", "distilled", "labels alone"):
            values = [figures[column] for figures in rows if column in figures]
            error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4f}{error}" if values else "")
        lines.append(f"| {name} | {TASKS[name].metric} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Distil students of other targets.", allow_abbrev=False)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--smoke", action="store_true", help="two steps of everything, and no results/")
    values = parser.parse_args(arguments)
    out = values.out_dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    budget = SMOKE if values.smoke else USUAL
    work = Work(out, values.data, values.texts, budget)
    work.prepare()
    found = []
    for seed in values.seeds:
        for name in values.rows:
            found.append((name, seed, work.row(name, seed)))
            print(found[-1], flush=True)
            how = f"Budget: {', '.join(f'{value:,} {key}' for key, value in budget._asdict().items())}; "
            how += ", ".join(f"{name} {task.longer} times the student's steps" for name, task in TASKS.items()) + ". "
            text = f"{how}{environment_line()}.\n\n{table(found)}"
            rows = [(n, s, which, value) for n, s, figures in found for which, value in figures.items()]
            for folder in (out,) if values.smoke else (out, RESULTS):
                write_table(folder, "other_targets", text, ("target", "seed", "model", "figure"), rows)


if __name__ == "__main__":
    main()
