from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_spec import SplitFile, TaskSpec
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import DataError

SST2 = TASKS["sst-2"]
PAIRS = TaskSpec(
    name="pairs",
    splits={"train": SplitFile("train.tsv", (1, 2), 0, header=False)},
    metrics=("pearson",),
    official=("pearson",),
    score_range=(0.0, 5.0),
)


def read(folder: Path, content: bytes, spec: TaskSpec = SST2, split: str = "train"):
    (folder / f"{split}.tsv").write_bytes(content)
    return read_split(spec, folder, split)


def test_quotation_marks_are_part_of_the_text(tmp_path):
    examples = read(tmp_path, b'sentence\tlabel\n"open quote\t0\nsays "yes"\t1\n\'s\t1\n')
    assert examples.texts == (['"open quote', 'says "yes"', "'s"],)
    assert examples.labels.tolist() == [0, 1, 1]
    assert examples.labels.dtype == np.int64


def test_byte_order_mark_crlf_blank_lines_and_a_missing_last_line_end_are_no_obstacle(tmp_path):
    examples = read(tmp_path, b"\xef\xbb\xbfsentence\tlabel\r\n\r\ngood\tpositive\r\n\t\r\nbad\tNegative")
    assert examples.texts == (["good", "bad"],)
    assert examples.labels.tolist() == [1, 0]
    assert read(tmp_path, b"label\tsentence\r\n1\tgood\r\n").texts == (["good"],)


def test_only_lf_and_crlf_end_a_line(tmp_path):
    text = "form\x0cfeed line\u2028separator next\x85line inner\rreturn"
    assert read(tmp_path, f"sentence\tlabel\n{text}\t1\n".encode()).texts == ([text],)


def test_columns_are_found_by_their_name_wherever_they_stand(tmp_path):
    examples = read(tmp_path, b"id\tlabel\tsentence\n7\t1\tgood\n8\t0\tbad\n")
    assert examples.texts == (["good", "bad"],)
    assert examples.labels.tolist() == [1, 0]


def test_pairs_and_scores_are_found_by_position_without_a_header(tmp_path):
    examples = read(tmp_path, b"2.5\tone\ttwo\n5\tthree\tfour\n", PAIRS)
    assert examples.texts == (["one", "three"], ["two", "four"])
    assert examples.labels.tolist() == [2.5, 5.0]
    assert examples.labels.dtype == np.float32
    assert len(examples) == 2


def test_a_test_file_may_lack_the_labels_and_a_train_file_may_not(tmp_path):
    assert read(tmp_path, b"index\tsentence\n0\tgood\n", split="test").labels is None
    assert read(tmp_path, b"sentence\tlabel\ngood\t1\n", split="test").labels.tolist() == [1]
    with pytest.raises(DataError, match=r"train.tsv, line 1: no column 'label'; found the columns index, sentence"):
        read(tmp_path, b"index\tsentence\n0\tgood\n")


def test_an_unknown_label_names_file_line_column_and_the_allowed_labels(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path, b"sentence\tlabel\ngood\t1\n\nodd\tneutral\n")
    for part in ("train.tsv, line 4, column 'label'", "'neutral'", "negative (or 0), positive (or 1)"):
        assert part in str(error.value)


@pytest.mark.parametrize("score", ["high", "", "nan", "inf", "-0.1", "5.01"])
def test_a_score_that_is_no_number_of_the_range_is_refused(tmp_path, score):
    with pytest.raises(DataError, match=r"line 2, column 0: .* from 0 to 5"):
        read(tmp_path, f"1\ta\tb\n{score}\ta\tb\n".encode(), PAIRS)


@pytest.mark.parametrize("score", ["nan", "-inf"])
def test_a_score_is_finite_even_where_any_number_will_do(tmp_path, score):
    free = replace(PAIRS, score_range=None)
    assert read(tmp_path, b"-1e6\ta\tb\n", free).labels.tolist() == [-1e6]
    with pytest.raises(DataError, match="is no score"):
        read(tmp_path, f"{score}\ta\tb\n".encode(), free)


def test_a_row_with_other_fields_is_refused_or_skipped_and_counted_as_the_task_says(tmp_path):
    content = b"sentence\tlabel\ngood\t1\nlost its label\na\ttab\t1\nbad\t0\n"
    with pytest.raises(DataError, match=r"train.tsv, line 3: 1 field, but line 1 has 2"):
        read(tmp_path, content)
    examples = read(tmp_path, content, replace(SST2, skip_short_rows=True))
    assert examples.texts == (["good", "bad"],)
    assert examples.skipped_rows == 2


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    with pytest.raises(DataError, match=r"train.tsv, line 3: byte 24 is not UTF-8"):
        read(tmp_path, b"sentence\tlabel\ngood\t1\nca\xe9\t1\n")


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\n\n", "is empty"), (b"sentence\tlabel\n", "no rows")]
)
def test_a_file_without_rows_is_refused(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, content)


def test_a_missing_file_names_what_is_there(tmp_path):
    (tmp_path / ".tinybert_cache").mkdir()
    with pytest.raises(DataError, match=r"found there: nothing$"):
        read_split(SST2, tmp_path, "train")
    (tmp_path / "training.tsv").write_text("x")
    with pytest.raises(DataError, match=r"cannot read .*train.tsv: No such file.* found there: training.tsv$"):
        read_split(SST2, tmp_path, "train")
    for number in range(20):
        (tmp_path / f"part{number}").touch()
    with pytest.raises(DataError, match=r"found there: part0, part1, part10, .* and 9 more$"):
        read_split(SST2, tmp_path, "train")
    with pytest.raises(DataError, match="no such folder"):
        read_split(SST2, tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no split 'eval'; it has train, dev, test"):
        read_split(SST2, tmp_path, "eval")


def test_a_missing_augmented_file_names_what_writes_it(tmp_path):
    augmented = replace(SST2, splits={"train": replace(SST2.splits["train"], file="train_aug.tsv")})
    with pytest.raises(DataError, match=r"in --data_dir: data_tools/data_augmentation.py writes it; found there"):
        read_split(augmented, tmp_path, "train")


def test_a_column_position_outside_the_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no column 2; found 2 fields and no header"):
        read(tmp_path, b"1.0\tone\n", PAIRS)
