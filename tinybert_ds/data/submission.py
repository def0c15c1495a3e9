"""Predictions in the format of a benchmark's server: a file for each test set, all in one zip.

N rows. A file of GLUE holds the header `index<TAB>prediction` and a line for each row of the test file; format and file
names: https://gluebenchmark.com/faq. One of CLUE holds an object with id and label for each row; names: its notes on
submission, of version 1.1.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinybert_ds.data.glue import DIAGNOSTIC_SPLIT
from tinybert_ds.data.metrics import Values
from tinybert_ds.data.task_files import read_table
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted
from tinybert_ds.targets import target_of

SUBMISSION_FILES: Mapping[tuple[str, str], str] = {
    ("cola", "test"): "CoLA.tsv",
    ("sst-2", "test"): "SST-2.tsv",
    ("mrpc", "test"): "MRPC.tsv",
    ("sts-b", "test"): "STS-B.tsv",
    ("qqp", "test"): "QQP.tsv",
    ("mnli", "test"): "MNLI-m.tsv",
    ("mnli", "test_mismatched"): "MNLI-mm.tsv",
    ("mnli", DIAGNOSTIC_SPLIT): "AX.tsv",
    ("mnli-mm", "test_mismatched"): "MNLI-mm.tsv",
    ("qnli", "test"): "QNLI.tsv",
    ("rte", "test"): "RTE.tsv",
    ("wnli", "test"): "WNLI.tsv",
}
"""(task, split) -> file; the server takes a zip of all of them. MNLI's mismatched set may have a model of its own."""

CLUE_SUBMISSION_FILES: Mapping[tuple[str, str], str] = {
    ("afqmc", "test"): "afqmc_predict.json",
    ("tnews", "test"): "tnews11_predict.json",
    ("tnews", "test1.0"): "tnews10_predict.json",
    ("iflytek", "test"): "iflytek_predict.json",
    ("cmnli", "test"): "cmnli_predict.json",
    ("ocnli", "test"): "ocnli_50k_predict.json",
    ("cluewsc2020", "test"): "cluewsc11_predict.json",
    ("cluewsc2020", "test1.0"): "cluewsc10_predict.json",
    ("csl", "test"): "csl_predict.json",
}
"""The same of CLUE, whose server takes any of them."""

_INDEX_COLUMNS = ("index", "id")
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same predictions give the same zip


def test_splits(spec: TaskSpec, data_dir: Path) -> dict[str, str]:
    """Return the test splits of a task whose files are there -> file of the submission."""
    known = {**SUBMISSION_FILES, **CLUE_SUBMISSION_FILES}
    files = {split: file for (task, split), file in known.items() if task == spec.name}
    return {split: file for split, file in files.items() if spec.split_path(data_dir, split).is_file()}


def read_index(spec: TaskSpec, data_dir: Path, split: str) -> list[str]:
    """Return what the server knows each row of a test file by: its index column, or the row's number without one.

    Raises:
        DataError: The file cannot be read, or names two rows alike.
    """
    table = read_table(spec, data_dir, split)
    header = table.header or []
    column = next((header.index(name) for name in _INDEX_COLUMNS if name in header), None)
    if column is None:
        return [str(number) for number in range(len(table.rows))]
    index = [fields[column].strip() for _, fields in table.rows]
    seen: set[str] = set()
    for (line, _), name in zip(table.rows, index, strict=True):
        if name in seen:
            raise DataError(
                f"{table.path}, line {line}, column {header[column]!r}: {quoted(name)} names a row above too; give the "
                "test file as the benchmark distributes it"
            )
        seen.add(name)
    return index


def format_predictions(spec: TaskSpec, index: Sequence[str], predictions: Values) -> str:
    """Return the content of a file of the submission.

    Args:
        spec: The task, whose target spells the predictions.
        index: (N,) from `read_index`.
        predictions: (N,), as `Target.predict` returns them.

    Returns:
        Tab-separated lines under a header; for a task of CLUE JSON lines.
    """
    assert len(index) == len(predictions), (len(index), len(predictions))
    words = target_of(spec).words(spec, predictions)
    if spec.name in {task for task, _ in CLUE_SUBMISSION_FILES}:
        rows = ({"id": int(i) if i.isdecimal() else i, "label": w} for i, w in zip(index, words, strict=True))
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    return "index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in zip(index, words, strict=True))


def submission_zip(files: Mapping[str, str]) -> bytes:
    """Return a zip of files, name -> content; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), files[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
