"""Writes down what a model says of a task's rows: columns that a prediction stage learns from without a teacher.

    python data_tools/label_rows.py --model teacher --task_file task.yaml --data_dir task --output task/labelled.jsonl

Processes share the rows through the folder `OUTPUT.parts` alone; one of them puts the parts together.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor

from data_tools.made_of import MadeOf
from data_tools.ranks import Ranks, find_ranks
from tinybert_ds.arguments import identity_of, parse_arguments
from tinybert_ds.arguments.label_rows import LabelRowsArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.data.row_outputs import Outputs, count_parts, part_batches, read_parts, write_part
from tinybert_ds.data.row_padding import choose_padding, marks_texts, prepare_to_read
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.data.task_files import read_table_in_blocks, split_files
from tinybert_ds.data.task_spec import GROUPS, TaskSpec
from tinybert_ds.data.task_tables import Table
from tinybert_ds.data.task_tokens import judge_rows, load_rows
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.token_files import Sentence, sentence_blocks
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, special_ids
from tinybert_ds.errors import ConfigError, ModelError, raise_all
from tinybert_ds.hardware import choose_float32_products, device_of_rank, inference_dtype, precision_problems
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_headed, read_config
from tinybert_ds.models.probe import check_capture
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.claims import Claims, Record
from tinybert_ds.shared_work.derived import cache_home, try_lock
from tinybert_ds.targets import target_of
from tinybert_ds.types import Batch, move, unit_outputs

BATCH_ROWS = {"cpu": 64, "cuda": 512}
STEPS_OF_A_PART = 32
RULE_VERSION = 1
"""Raised whenever the same settings give another file than before."""

_ROWS_AT_ONCE = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    """Label the rows that the command line names; say how the task file then reads them."""
    options, problems = parse_arguments(LabelRowsArguments, arguments)
    ranks = find_ranks()
    device = device_of_rank(ranks.local_rank, no_cuda=options.no_cuda)
    raise_all([*problems, *precision_problems("dtype", options.dtype, device), *_path_problems(options)])
    job = _prepare(options, device, ranks)
    files = _files(options, job.identity)
    if files.finished() is None:
        _work(job, files, options, device)
    if ranks.rank == 0:
        print(f"{options.output}: {job.described()} of {options.split} with the column {options.column}")
        print(f"task file: {task_lines(job.spec, options)}", flush=True)


@dataclass(frozen=True)
class _Job:
    """The rows, and what decides about the output."""

    spec: TaskSpec
    rows: EncodedExamples
    columns: list[int]  # the model's output for each output of the task
    max_seq_length: int
    pad_id: int
    token_types: bool
    identity: dict[str, Any]

    def described(self) -> str:
        """How many rows there are, or sentences, which may be several rows each."""
        if not target_of(self.spec).by_token:
            return f"{len(self.rows):,} rows"
        return f"{int(self.rows.columns[GROUPS][-1]) + 1:,} sentences"

    def source(self, batch_rows: int) -> TaskSource:
        """All rows in the order of their length."""
        return TaskSource(
            self.rows,
            global_batch_size=batch_rows,
            max_seq_length=self.max_seq_length,
            seed=0,
            padding="valid",
            pad_id=self.pad_id,
            shuffle=False,
        )


def _prepare(options: LabelRowsArguments, device: torch.device, ranks: Ranks) -> _Job:
    """Read everything but the model's weights."""
    spec = _unlabelled(find_task(options.task_name, options.task_file), options.split)
    if not target_of(spec).teacher_kinds:
        raise ConfigError(
            f"task {spec.name} is for the {target_of(spec).kind}, which learns from no columns; give --teacher_model "
            "to the prediction stage instead"
        )
    config = read_config(options.model, role="model")
    columns = target_of(spec).columns(spec, config, options.stated_labels, role="model")
    tokenizer = load_tokenizer(options.model, options.lower_case)
    length = options.max_seq_length or spec.max_seq_length
    home = cache_home(options.data_dir, options.cache_dir)
    rows = load_rows(spec, options.data_dir, options.split, tokenizer, length, home=home, first=ranks.local_rank == 0)
    path = spec.split_path(options.data_dir, options.split)
    warning = judge_rows(rows, tokenizer, path, allow_unknown=options.allow_unknown)
    if warning and ranks.rank == 0:
        print(f"warning: {warning}", flush=True)
    dtype = str(inference_dtype(device, options.dtype)).removeprefix("torch.")
    identity = {
        "rule": RULE_VERSION,
        "rows of a batch": BATCH_ROWS[device.type],
        "rows": rows.fingerprint,
        "--model": model_fingerprint(options.model),
        "--column": options.column,
        "outputs": columns,
        "max_seq_length": length,
        **{f"--{name}": value for name, value in identity_of(options, {"dtype": dtype}).items()},
    }
    types = returns_token_types(tokenizer)
    pad = special_ids(tokenizer).pad if marks_texts(tokenizer) else choose_padding(config, tokenizer, [rows])
    return _Job(spec, rows, columns, length, pad, types, identity)


def _unlabelled(spec: TaskSpec, split: str) -> TaskSpec:
    """The task with a split that may lack labels."""
    if split not in spec.splits:
        raise ConfigError(f"--split {split}: task {spec.name} has the splits {', '.join(spec.splits)}")
    return replace(spec, splits={**spec.splits, split: replace(spec.splits[split], may_lack_label=True)})


def _files(options: LabelRowsArguments, identity: Mapping[str, Any]) -> MadeOf:
    output = Path(options.output)
    record = output.with_name(f"{output.name}.made_of.json")
    return MadeOf(output, record, identity, advice="Rename or remove it, or give another --output")


def _write(files: MadeOf, rows: Iterator[dict[str, Any]], schema: pyarrow.Schema | None = None) -> None:
    temporary = files.output.with_name(f".{files.output.name}.tmp")
    try:
        write_rows(temporary, rows, files.output.suffix.lower(), schema)
        files.complete(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _work(job: _Job, files: MadeOf, options: LabelRowsArguments, device: torch.device) -> None:
    """Compute the parts that nobody else does; the first process that finds all of them there writes the output."""
    source = job.source(BATCH_ROWS[device.type])
    paths = {str(n): files.parts / f"{n}.npy" for n in range(count_parts(source, STEPS_OF_A_PART))}
    ask = _asker(job, options, device)
    files.parts.mkdir(parents=True, exist_ok=True)

    def is_done() -> bool:
        bar.update(sum(path.is_file() for path in paths.values()) - bar.n)
        return files.record.is_file() and files.output.is_file()

    def work(name: str) -> Record:
        write_part(paths[name], ask, part_batches(source, int(name), STEPS_OF_A_PART))
        return {}

    def written(name: str) -> Path | None:
        return paths[name] if paths[name].is_file() else None

    with progress_bar(total=len(paths), desc="labelling rows", unit="part") as bar, suppress(FileNotFoundError):
        Claims(files.parts).share(paths, work, record=written, stopped=is_done)
    while files.finished() is None:
        with try_lock(files.output) as locked:
            if locked and files.finished() is None:
                outputs = read_parts(paths.values())
                if not np.isfinite(outputs).all():
                    raise ModelError("--model gives answers that are no finite numbers; take --dtype fp32, or another")
                if target_of(job.spec).by_token:
                    schema = sentence_schema(job, options) if files.output.suffix.lower() == ".parquet" else None
                    _write(files, labelled_sentences(job, options, outputs), schema)
                else:
                    _write(files, labelled_rows(job, options, outputs))
    shutil.rmtree(files.parts, ignore_errors=True)
    with suppress(OSError):  # parts of other settings are there
        files.parts.parent.rmdir()


def _asker(job: _Job, options: LabelRowsArguments, device: torch.device) -> Callable[[Batch], Tensor]:
    choose_float32_products(device, onednn=not options.no_onednn_matmul)
    head = target_of(job.spec).head(job.spec)
    model = load_headed(options.model, head, role="model", pooler_relu=options.pooler_relu)
    prepare_to_read(model, job.pad_id)
    encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True, token_types=job.token_types)
    check_capture(encoder, sequence_length=job.max_seq_length)
    encoder = encoder.to(device=device, dtype=inference_dtype(device, options.dtype)).eval()

    @torch.no_grad()
    def ask(batch: Batch) -> Tensor:
        moved = move(batch, device)
        logits = encoder(moved).logits
        assert logits is not None
        return unit_outputs(logits, moved)[:, job.columns]

    return ask


def labelled_rows(job: _Job, options: LabelRowsArguments, outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split in the order of its files: what the task reads of each, and the model's answers."""
    number = 0
    for table in read_table_in_blocks(job.spec, options.data_dir, options.split):
        names = _column_names(table, options.column)
        for _, fields in table.rows:
            yield {**{name: fields[at] for at, name in names.items()}, options.column: _rounded(outputs[number])}
            number += 1
    assert number == len(job.rows), (number, len(job.rows))


def labelled_sentences(job: _Job, options: LabelRowsArguments, outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield the sentences of a split in the order of its files, as objects, with the model's answers to each word.

    Those of files with a word a line get their lists under the names of the task file, "0" and "-1" included.
    """
    layout, number = job.spec.splits[options.split], 0
    for sentence in _sentences(job, options):
        answers = [_rounded(row) for row in outputs[number : number + len(sentence.words)]]
        number += len(sentence.words)
        tags = {} if sentence.tags is None else {str(layout.label): sentence.tags}
        yield {**_own_values(sentence), str(layout.texts[0]): sentence.words, **tags, options.column: answers}
    assert number == len(outputs), (number, len(outputs))


def sentence_schema(job: _Job, options: LabelRowsArguments) -> pyarrow.Schema:
    """Return the columns of a Parquet file of `labelled_sentences`: what any of them has, as text where types differ.

    JSON lines need none of this: an object may lack what others have, or have it in another type.
    """
    layout, tagged = job.spec.splits[options.split], False
    types: dict[str, set[pyarrow.DataType]] = {}
    for sentence in _sentences(job, options):
        tagged |= sentence.tags is not None
        for name, value in _own_values(sentence).items():
            types.setdefault(name, set()).add(_column_type(value))
    columns = {name: _common_type(found) for name, found in types.items()}
    words = pyarrow.list_(pyarrow.string())
    columns |= {str(layout.texts[0]): words, **({str(layout.label): words} if tagged else {})}
    columns[options.column] = pyarrow.list_(pyarrow.list_(pyarrow.float64()))
    return pyarrow.schema(list(columns.items()))


def _sentences(job: _Job, options: LabelRowsArguments) -> Iterator[Sentence]:
    layout = job.spec.splits[options.split]
    paths = split_files(job.spec, options.data_dir, options.split)
    return chain.from_iterable(block for path in paths for block in sentence_blocks(path, layout))


def _own_values(sentence: Sentence) -> dict[str, Any]:
    """What else a file of objects says of a sentence, lists and objects left out."""
    return {name: value for name, value in (sentence.item or {}).items() if isinstance(value, str | int | float)}


def _common_type(found: set[pyarrow.DataType]) -> pyarrow.DataType:
    """The type of a column whose values have these types."""
    if len(found) == 1:
        return next(iter(found))
    return pyarrow.float64() if found == {pyarrow.int64(), pyarrow.float64()} else pyarrow.string()


def _column_type(value: str | float) -> pyarrow.DataType:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
        return pyarrow.string()  # no column of numbers holds it
    return {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}[type(value)]


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [float(f"{value:.9g}") for value in values.tolist()]  # enough for a float32


def _column_names(table: Table, answers: str) -> dict[int, str]:
    """The columns that are taken over, by their place: all that have names, else texts and label by their place."""
    if table.header is None:
        places = [*table.text_columns, *([] if table.label_column is None else [table.label_column])]
        return {at: str(at) for at in places}
    return {at: name for at, name in enumerate(table.header) if name != answers}


def write_rows(path: Path, rows: Iterator[dict[str, Any]], suffix: str, schema: pyarrow.Schema | None = None) -> None:
    """Write rows as JSON lines or as Parquet; `schema`: of the latter, None where all rows are like the first one."""
    if suffix == ".parquet":
        _write_parquet(path, rows, schema)
        return
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], schema: pyarrow.Schema | None) -> None:
    writer: Any = None
    for block in iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), []):
        fitting = block if schema is None else [_fitted(row, schema) for row in block]
        table = pyarrow.Table.from_pylist(fitting, schema=schema)
        writer, schema = writer or parquet.ParquetWriter(path, table.schema), table.schema
        writer.write_table(table)
    writer.close()


def _fitted(row: Mapping[str, Any], schema: pyarrow.Schema) -> dict[str, Any]:
    """A row with text where its column holds text."""
    texts = {field.name for field in schema if field.type == pyarrow.string()}
    return {
        name: json.dumps(value) if name in texts and not isinstance(value, str) else value
        for name, value in row.items()
    }


def task_lines(spec: TaskSpec, options: LabelRowsArguments) -> str:
    """Return what a task file says to let a prediction stage learn from the output."""
    kind = target_of(spec).teacher_kinds[0]
    name = os.path.relpath(options.output, options.data_dir)  # which is where names in `files` begin
    return f"`files: {{train: {name}, ...}}`, `teacher: {{columns: {options.column}, kind: {kind}}}`"


def _path_problems(options: LabelRowsArguments) -> list[str]:
    parent = Path(options.output).absolute().parent
    return [] if parent.is_dir() else [f"--output {options.output}: {parent} is no directory; make it first"]


if __name__ == "__main__":
    run_command(main)
