"""What the task stages gain by padding rows to their neighbours' length, and by keeping the teacher's predictions.

    python tests/benchmarks/bench_task.py [--rounds 5] [--rows 256] [--train_file FILE] [--tokenizer DIR]

A 12-layer teacher of width 768 and the 4L_312 student, random weights, through the engines and the loop's own step.
"padding": an epoch of each stage over SST-2-like rows (random, 22 tokens on average, or those of --train_file, a file
in SST-2's layout), through the length bins against the same batches padded to 64. "predictions": three epochs of the
prediction stage, the teacher's logits kept (computing them included) against the live teacher. Writes
results/task.csv, prints a table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_step import joined_world
from tests.benchmarks.measurement import RESULTS, Row, interleave, publish, rows_of, table
from tests.benchmarks.step_cases import SIZES, Sizes
from tinybert_ds.arguments import FinetuneArguments
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY, read_config, resolve_config
from tinybert_ds.engine.loop import Step, optimizer_step
from tinybert_ds.engine.student import build_engine
from tinybert_ds.engine.teacher import Teacher, build_teacher
from tinybert_ds.engine.teacher_cache import cached_teacher, compute_logits, logits_directory
from tinybert_ds.engine.teacher_pass import TeacherPass
from tinybert_ds.engine.watch.monitor import Stopwatch
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.losses import gradients_only
from tinybert_ds.models.build import STUDENTS_DIR
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.layer_map import attention_layers
from tinybert_ds.models.student import DistilledStudent, freeze_unused
from tinybert_ds.objective import IntermediateObjective, PredictionObjective
from tinybert_ds.types import Batch

BINS, PADDED, KEPT, LIVE = "length bins", "padded to 64", "kept predictions", "live teacher"
LENGTH = 64
BATCH_ROWS = 32
EPOCHS = 3


def make_rows(values: argparse.Namespace) -> EncodedExamples:
    """Return so many rows of a file, or random ones of lengths like SST-2's."""
    rng = np.random.default_rng(0)
    if values.train_file is not None:
        lines = values.train_file.read_text(encoding="utf-8").split("\n")[1:]
        texts = [line.split("\t")[0] for line in lines if line]
        chosen = [texts[place] for place in rng.permutation(len(texts))[: values.rows]]
        examples = Examples(values.train_file, (chosen,), rng.integers(0, 2, len(chosen)))
        return encode(examples, load_tokenizer(values.tokenizer, None), LENGTH)
    lengths = np.clip(rng.gamma(4, 5.5, values.rows).astype(np.int64), 5, LENGTH)
    tokens = rng.integers(1000, 30_000, lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return EncodedExamples(tokens, offsets, lengths.astype(np.int32), rng.integers(0, 2, values.rows))


def source_of(rows: EncodedExamples, batch_rows: int, *, shuffle: bool) -> TaskSource:
    """Return the batches of rows."""
    how = {"max_seq_length": LENGTH, "seed": 0, "padding": "valid", "pad_id": 0}
    return TaskSource(rows, global_batch_size=batch_rows, shuffle=shuffle, **how)


def epoch(rows: EncodedExamples, number: int) -> list[Batch]:
    """Return the steps of an epoch."""
    source = source_of(rows, BATCH_ROWS, shuffle=True)
    steps = range(source.steps_in_epoch(number))
    return [source.micro_batches(number, step, rank=0, world_size=1, accumulation=1)[0] for step in steps]


def pad_fully(batch: Batch) -> Batch:
    """Return a batch padded to `LENGTH`."""
    more = LENGTH - batch.input_ids.shape[1]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return batch._replace(**{name: F.pad(getattr(batch, name), (0, more)) for name in names})


def classifier(size: Sizes | None) -> BertForSequenceClassification:
    """Return a random classifier of two classes; None: the shipped 4L_312."""
    if size is None:
        return BertForSequenceClassification(BertConfig.from_json_file(STUDENTS_DIR / "4L_312.json"))
    width, layers, intermediate = size
    return BertForSequenceClassification(
        BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=intermediate)
    )


def make_stage(stage: str, sizes: str) -> tuple[Callable[[Sequence[Batch], Teacher | None], None], Teacher | None]:
    """Return what trains on batches, one step each, and the stage's teacher."""
    world = joined_world()
    size, student_size = SIZES[sizes]
    teacher_model, student_model = classifier(size), classifier(student_size)
    logits = partial(CapturingEncoder, states=(), attention_layers=(), logits=True)
    if stage == "intermediate":
        depth, every = student_model.config.num_hidden_layers, teacher_model.config.num_hidden_layers
        layer_map = tuple(range(0, every + 1, every // depth))
        teacher = CapturingEncoder(
            teacher_model, states=layer_map, attention_layers=attention_layers(layer_map), logits=False
        )
        student = CapturingEncoder(student_model, states=range(depth + 1), attention_layers=range(depth), logits=False)
        widths = student_model.config.hidden_size, teacher_model.config.hidden_size
        objective = IntermediateObjective(depth, *widths, projection="per_layer", padding="valid")
    else:
        teacher, student = logits(teacher_model), logits(student_model)
        objective = PredictionObjective() if stage == "prediction" else PredictionObjective(weight=0, label_weight=1)
    freeze_unused(student)
    arguments = FinetuneArguments(output_dir="", data_dir="", model="", train_batch_size=BATCH_ROWS)
    config, problems = read_config(CONFIG_DIRECTORY / "zero0_fp32.json")
    config, more = resolve_config(config, arguments, world_size=1, device_type=world.device.type)
    assert not problems + more, problems + more
    engine = build_engine(
        DistilledStudent(student, objective),
        config,
        weight_decay=0.01,
        total_steps=1_000_000,
        warmup=0.0,
        schedule="constant",
    )
    engine.train()
    stopwatch = Stopwatch(world.device)

    def run(batches: Sequence[Batch], asked: Teacher | None) -> None:
        teacher_pass = TeacherPass(asked, world.device)
        for batch in batches:
            step = Step(1, 0, BATCH_ROWS, [batch])
            with gradients_only():
                optimizer_step([engine], teacher_pass, step, stopwatch, seed=0, rank=0)

    live = None if stage == "fine-tuning" else build_teacher(teacher, inference_dtype(world.device))
    return run, live


def padding_rows(stage: str, rows: EncodedExamples, sizes: str, rounds: int) -> list[Row]:
    """Measure an epoch of a stage, through the bins and padded."""
    run, teacher = make_stage(stage, sizes)
    short = epoch(rows, 0)
    full = [pad_fully(batch) for batch in short]
    variants = {BINS: partial(run, short, teacher), PADDED: partial(run, full, teacher)}
    case = f"padding: {stage}, {len(rows)} rows of {rows.lengths.mean():.0f} tokens"
    return rows_of("task", case, interleave(variants, rounds), peers={BINS: PADDED}, samples=len(rows))


def prediction_rows(rows: EncodedExamples, sizes: str, rounds: int) -> list[Row]:
    """Measure three epochs of the prediction stage, with the teacher's logits kept and without."""
    world = joined_world()
    run, teacher = make_stage("prediction", sizes)
    assert teacher is not None
    epochs = [epoch(rows, number) for number in range(EPOCHS)]

    def kept() -> None:
        with tempfile.TemporaryDirectory() as folder:
            directory = logits_directory(Path(folder), {})
            batches_of = partial(source_of, rows, shuffle=False)
            logits = compute_logits(directory, teacher, len(rows), batches_of, world)
            for batches in epochs:
                run(batches, cached_teacher(logits, world.device))

    def live() -> None:
        for batches in epochs:
            run(batches, teacher)

    variants: Mapping[str, Callable[[], None]] = {KEPT: kept, LIVE: live}
    case = f"predictions: {EPOCHS} epochs of {len(rows)} rows of {rows.lengths.mean():.0f} tokens"
    return rows_of("task", case, interleave(variants, rounds), peers={KEPT: LIVE}, samples=EPOCHS * len(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    add("--rows", type=int, default=256, help="rows of an epoch (default: 256)")
    add("--train_file", type=Path, metavar="FILE", help="rows of a file in SST-2's layout; needs --tokenizer")
    add("--tokenizer", type=Path, metavar="DIR", help="a model directory with the tokeniser (30,522 tokens)")
    add("--sizes", choices=SIZES, default="usual", help="tiny: models that only show that it runs")
    add("--out", type=Path, default=RESULTS / "task.csv", help="CSV to write")
    add("--readme", metavar="SECTION", help="put the table into this section of README.md")
    values = parser.parse_args(arguments)
    if (values.train_file is None) != (values.tokenizer is None):
        parser.error("--train_file and --tokenizer go together")
    rows = make_rows(values)
    measured: list[Row] = []
    for stage in ("intermediate", "prediction", "fine-tuning"):
        measured += padding_rows(stage, rows, values.sizes, values.rounds)
        print(table(measured[-2:]), flush=True)
    measured += prediction_rows(rows, values.sizes, values.rounds)
    publish(measured, values.out, readme=values.readme, plotted=False)
    print(table(measured))


if __name__ == "__main__":
    main()
