"""What a teacher said of each word of a sentence: an array of arrays in a column of its objects.

n words of a block, C outputs of the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.object_records import find_value
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.token_files import Sentence
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted, shown
from tinybert_ds.targets import target_of


def parse_word_answers(spec: TaskSpec, sentences: Sequence[Sentence]) -> NDArray[np.float32]:
    """Return what the teacher said (n, C) of the words of some sentences, as the losses take it.

    Raises:
        DataError: A file of words in lines, which has no room for it, or an array that is missing, is not of numbers,
            or not of as many as there are words and outputs; names file and sentence.
    """
    teacher, target = spec.teacher, target_of(spec)
    assert teacher is not None
    column, width = str(teacher.columns[0]), len(spec.label_names)
    found = np.concatenate([_array(sentence, column, width) for sentence in sentences])
    problem = target.teacher_problem(found, teacher.kind)
    if problem is not None:
        number, what = problem
        ends = np.cumsum([len(sentence.words) for sentence in sentences])
        at = int(np.searchsorted(ends, number, side="right"))
        word = number - int(ends[at]) + len(sentences[at].words)
        raise DataError(f"{sentences[at].place}, column {quoted(column)}, word {word + 1}: {what}")
    outputs = target.teacher_outputs(found, teacher.kind, teacher.temperature)
    return np.ascontiguousarray(outputs[:, list(teacher.order)] if teacher.order else outputs, dtype=np.float32)


def _array(sentence: Sentence, column: str, width: int) -> NDArray[np.float32]:
    if sentence.item is None:
        raise DataError(
            f"{sentence.place}: a file with a word a line has no arrays for `teacher`; give JSON lines, Parquet or a "
            "directory of `datasets`, such as data_tools/label_rows.py writes"
        )
    value = find_value(sentence.item, column)
    place = f"{sentence.place}, column {quoted(column)}"
    if value is None:
        raise DataError(f"{place}: no value; give what the teacher said of each word, or remove the sentence")
    count = len(value) if isinstance(value, list) else 0
    if count != len(sentence.words):
        raise DataError(
            f"{place}: an array for each of {len(sentence.words)} words is expected, found "
            + (f"{count} of them" if count else shown(value, 100))
        )
    for number, values in enumerate(value, start=1):
        if not isinstance(values, list) or len(values) != width:
            size = f"{len(values)} values" if isinstance(values, list) else shown(values, 100)
            raise DataError(f"{place}, word {number}: {size}; the task has {width} outputs")
    array = np.array(value)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(f"{place}: a value that is missing or no finite number in {shown(value, 200)}")
    return array.astype(np.float32)
