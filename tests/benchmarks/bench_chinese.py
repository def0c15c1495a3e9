"""The whole road in Chinese: a teacher pre-trained small for the purpose, and a student distilled from it.

    python tests/benchmarks/bench_chinese.py OUT_DIR --data DIR [--seeds 1 2 3] [--mlm_steps 1500]

DIR holds train.tsv and dev.tsv with the columns sentence and label (0 and 1), such as hotel reviews. The vocabulary is
learnt from the training texts, the teacher (4 layers, width 256) by masked language modelling on them without their
labels, once. Then for each seed: fine-tuning of the teacher, of the same teacher without pre-training, general
distillation, both stages of task distillation, and the student from labels alone, with as many epochs as both stages.
Writes OUT_DIR/chinese.md. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from tests.benchmarks.measurement import environment

ROOT = Path(__file__).parents[2]
LENGTH, MLM_ROWS = 128, 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEACHER = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1024}
STUDENT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 512}
TASK_FILE = (
    "files: {train: train.tsv, dev: dev.tsv}\ntext: sentence\nlabel: label\nlabels: ['0', '1']\nmetric: accuracy\n"
    f"max_seq_length: {LENGTH}\n"
)
ENTRIES = {
    "teacher": "teacher, pre-trained",
    "unprepared": "teacher, from random weights",
    "student": "student, distilled",
    "labels": "student, labels alone",
}


def read_texts(path: Path) -> list[str]:
    """Return the column sentence of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    place = lines[0].split("\t").index("sentence")
    return [line.split("\t")[place] for line in lines[1:]]


def make_vocabulary(texts: Sequence[str], directory: Path) -> BertTokenizerFast:
    """Learn a WordPiece vocabulary, in which a Chinese character is a word, and write it."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=6000, min_frequency=2, special_tokens=list(SPECIAL))
    )
    directory.mkdir(parents=True, exist_ok=True)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("\n".join(piece for piece, _ in pieces) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(directory / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(directory)
    return tokenizer


def pre_train(texts: Sequence[str], directory: Path, *, steps: int, seed: int = 0) -> dict[str, float]:
    """Train a BERT to fill in masked characters and write it with its tokeniser; return its losses."""
    tokenizer = make_vocabulary(texts, directory)
    stream = np.concatenate([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **TEACHER)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps, pct_start=0.1)
    losses = []
    for step in range(steps):
        inputs, labels = masked_batch(stream, len(tokenizer), generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            print(f"masked language modelling: step {step}, loss {losses[-1]:.3f}", flush=True)
    model.eval().save_pretrained(directory)
    return {"first": losses[0], "last": statistics.fmean(losses[-50:])}


def masked_batch(stream: np.ndarray, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows of text (MLM_ROWS, LENGTH) with 15 % of the characters hidden, and what stood there, else -100."""
    begins = torch.randint(0, len(stream) - LENGTH, (MLM_ROWS,), generator=generator)
    rows = np.stack([stream[begin : begin + LENGTH - 2] for begin in begins.tolist()])
    text = torch.from_numpy(rows.astype(np.int64))
    hidden = torch.rand(text.shape, generator=generator) < 0.15
    kind = torch.rand(text.shape, generator=generator)
    random = torch.randint(len(SPECIAL), size, text.shape, generator=generator)
    inputs = torch.where(hidden & (kind < 0.8), 4, torch.where(hidden & (kind >= 0.9), random, text))
    labels = torch.where(hidden, text, -100)
    edges = [torch.full((MLM_ROWS, 1), token) for token in (2, 3)]
    nothing = torch.full((MLM_ROWS, 1), -100)
    return torch.cat([edges[0], inputs, edges[1]], 1), torch.cat([nothing, labels, nothing], 1)


class Road:
    """The commands of one seed, each in a directory of its own; those that have finished are not run again."""

    def __init__(self, out_dir: Path, data: Path, seed: int, *, epochs: int, general_steps: int) -> None:
        self.common, self.folder, self.epochs = out_dir, out_dir / f"seed-{seed}", epochs
        task = ["--data_dir", data, "--task_file", out_dir / "task.yaml", "--cache_dir", out_dir / "cache"]
        self._task = [*task, "--seed", seed, "--eval_step", 100, "--train_batch_size", 32]
        self._seed, self._general_steps = seed, general_steps

    def run(self) -> dict[str, float]:
        """Run all commands; return the accuracy of each entry of ENTRIES."""
        bert, student = self.common / "bert", self.common / "student.json"
        unprepared = ["--from_scratch", "--tokenizer", bert, "--model", self.common / "teacher.json"]
        self._stage("finetune_teacher", "teacher", ["--model", bert, *self._fine(3, 2e-4)])
        self._stage("finetune_teacher", "unprepared", [*unprepared, *self._fine(3, 2e-4)])
        general = ["--pregenerated_data", self.common / "shards", "--teacher_model", bert, "--student_model", student]
        general += ["--max_steps", self._general_steps, "--train_batch_size", 32]
        general += ["--learning_rate", 5e-4, "--seed", self._seed, "--max_seq_length", LENGTH]
        self._stage("general_distill", "general", general)
        teacher = ["--teacher_model", self.folder / "teacher"]
        begin = ["--student_model", self.folder / "general", *teacher, *self._fine(self.epochs, 5e-4)]
        self._stage("task_distill", "intermediate", begin)
        end = ["--pred_distill", "--student_model", self.folder / "intermediate", *teacher]
        self._stage("task_distill", "student", [*end, *self._fine(self.epochs, 3e-4)])
        alone = ["--from_scratch", "--tokenizer", bert, "--model", student]
        self._stage("finetune_teacher", "labels", [*alone, *self._fine(2 * self.epochs, 3e-4)])
        results = {name: json.loads((self.folder / name / "eval_results.json").read_text()) for name in ENTRIES}
        return {name: result["eval_accuracy"] for name, result in results.items()}

    def _fine(self, epochs: int, rate: float) -> list[object]:
        return [*self._task, "--num_train_epochs", epochs, "--learning_rate", rate]

    def _stage(self, command: str, name: str, words: Sequence[object]) -> None:
        launch([ROOT / "launchers" / f"{command}.py", *words, "--output_dir", self.folder / name], self.folder / name)


def launch(words: Sequence[object], log: Path) -> None:
    """Run a command of the project, its output beside its directory; ends this one where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.with_suffix(".log").open("ab") as handle:
        subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, stdout=handle, stderr=handle, check=True)
    print(f"{log.name}: {time.monotonic() - begin:.0f} s", flush=True)


def table(found: dict[int, dict[str, float]], majority: float, rows: int) -> str:
    """Return the accuracies of all seeds, with mean and standard deviation, as Markdown."""
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in found) + " | mean | standard deviation |"]
    lines.append(f"|---|{'---:|' * (len(found) + 2)}")
    for name, shown in ENTRIES.items():
        values = [results[name] for results in found.values()]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        lines.append(
            f"| {shown} | {' | '.join(f'{v:.4f}' for v in values)} | {statistics.fmean(values):.4f} | {spread} |"
        )
    return "\n".join([*lines, "", f"Accuracy on {rows:,} rows; the majority class has {majority:.4f}."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--mlm_steps", type=int, default=1500)
    parser.add_argument("--general_steps", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3, help="of each stage of task distillation")
    options = parser.parse_args(arguments)
    out, texts = options.out_dir.absolute(), read_texts(options.data / "train.tsv")
    out.mkdir(parents=True, exist_ok=True)
    prepare(out, texts, options.mlm_steps)
    budget = {"epochs": options.epochs, "general_steps": options.general_steps}
    found = {seed: Road(out, options.data.absolute(), seed, **budget).run() for seed in options.seeds}
    labels = [line.rsplit("\t", 1)[1] for line in (options.data / "dev.tsv").read_text("utf-8").splitlines()[1:]]
    majority = max(labels.count(label) for label in set(labels)) / len(labels)
    told: dict[str, Any] = json.loads((out / "mlm.json").read_text())
    machine = ", ".join(environment().values())
    text = (
        f"{table(found, majority, len(labels))}\n\nMasked language modelling: {options.mlm_steps:,} steps of "
        f"{MLM_ROWS} rows of {LENGTH}, loss {told['first']:.2f} at first, {told['last']:.2f} at last. {machine}.\n"
    )
    (out / "chinese.md").write_text(text, encoding="utf-8")
    print(text)


def prepare(out: Path, texts: Sequence[str], mlm_steps: int) -> None:
    """Make what all seeds share, unless it is there: the pre-trained teacher, shards, configs and the task file."""
    if not (out / "mlm.json").is_file():
        (out / "mlm.json").write_text(json.dumps(pre_train(texts, out / "bert", steps=mlm_steps)))
    size = len(BertTokenizerFast.from_pretrained(out / "bert"))
    for name, sizes in (("teacher", TEACHER), ("student", STUDENT)):
        BertConfig(vocab_size=size, max_position_embeddings=LENGTH, **sizes).to_json_file(out / f"{name}.json")
    (out / "task.yaml").write_text(TASK_FILE)
    corpus = "\n\n".join(text.replace("。", "。\n") for text in texts)
    (out / "corpus.txt").write_text(corpus + "\n", encoding="utf-8")
    words: list[object] = [ROOT / "data_tools" / "pregenerate_training_data.py", "--train_corpus", out / "corpus.txt"]
    words += ["--bert_model", out / "bert", "--output_dir", out / "shards", "--max_seq_len", LENGTH]
    launch(words, out / "shards")


if __name__ == "__main__":
    main()
