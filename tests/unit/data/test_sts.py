"""Files of scored pairs, judged by ranks."""

from __future__ import annotations

import numpy as np
import pytest

from tinybert_ds.data.sts import cosines, read_sts
from tinybert_ds.errors import ConfigError, DataError

COLUMNS = ("sentence1", "sentence2", "score")


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["genre\tsentence1\tsentence2\tscore", *("x\t" + "\t".join(row) for row in rows)]) + "\n")
    return path


def test_the_first_sentences_of_all_pairs_stand_before_the_second_ones(tmp_path):
    (pairs,) = read_sts([write(tmp_path / "dev.tsv", ("a", "b", "1.5"), ("c", "d", "0"))], COLUMNS)
    assert pairs.name == "dev"
    assert pairs.texts.texts == (["a", "c", "b", "d"],)
    assert pairs.scores.tolist() == [1.5, 0.0]


def test_cosines_do_not_see_lengths_and_a_zero_vector_is_like_nothing():
    left = np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=np.float32)
    right = np.array([[5.0, 0.0], [1.0, 0.0], [0.0, 9.0]], dtype=np.float32)
    np.testing.assert_allclose(cosines(left, right), [1, 0, 0.5**0.5])


def test_only_the_order_of_the_cosines_counts(tmp_path):
    rows = [("a", "b", "0"), ("a", "b", "1"), ("a", "b", "9")]
    (pairs,) = read_sts([write(tmp_path / "dev.tsv", *rows)], COLUMNS)
    left = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (3, 1))
    rising = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0]], dtype=np.float32)
    assert pairs.judge(np.concatenate([left, rising])) == pytest.approx(1)
    assert pairs.judge(np.concatenate([left, rising[[2, 1, 0]]])) == pytest.approx(-1)
    assert pairs.judge(np.concatenate([left, rising[[1, 0, 2]]])) == pytest.approx(0.5)


def test_a_score_that_is_no_number_is_named_by_file_line_and_column(tmp_path):
    path = write(tmp_path / "dev.tsv", ("a", "b", "1"), ("c", "d", "high"))
    with pytest.raises(DataError, match=r"dev\.tsv, line 3, column 'score': 'high'"):
        read_sts([path], COLUMNS)


def test_files_that_are_called_alike_are_told_apart_by_their_folders(tmp_path):
    files = [write(tmp_path / year / "dev.tsv", ("a", "b", "1"), ("a", "c", "2")) for year in ("2014", "2015")]
    assert [pairs.name for pairs in read_sts(files, COLUMNS)] == ["2014_dev", "2015_dev"]
    with pytest.raises(ConfigError, match="alike"):
        read_sts([files[0], files[0]], COLUMNS)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.tsv does not exist"):
        read_sts([tmp_path / "none.tsv"], COLUMNS)
