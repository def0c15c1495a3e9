import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from tinybert_ds.data.submission import SUBMISSION_FILES, format_predictions, read_index, submission_zip
from tinybert_ds.data.submission import test_splits as find_test_splits
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import DataError


@pytest.mark.parametrize(
    ("task", "predictions", "words"),
    [
        ("cola", [1, 0], ["1", "0"]),
        ("wnli", [1, 0], ["1", "0"]),
        ("mnli", [2, 0], ["contradiction", "entailment"]),
        ("qnli", [1, 0], ["not_entailment", "entailment"]),
        ("rte", [0, 1], ["entailment", "not_entailment"]),
        ("sts-b", [-0.5, 5.2], ["0.000", "5.000"]),
    ],
)
def test_predictions_are_written_as_the_benchmark_spells_them(task, predictions, words):
    content = format_predictions(TASKS[task], ["7", "9"], np.array(predictions))
    assert content == f"index\tprediction\n7\t{words[0]}\n9\t{words[1]}\n"


def test_a_task_of_the_users_own_gets_its_labels_names_unless_its_files_number_them():
    own = replace(TASKS["rte"], name="own", label_names=("ham", "spam"), label_aliases={"h": "ham"})
    assert format_predictions(own, ["0"], np.array([0])).endswith("0\tham\n")
    numbered = replace(own, label_aliases={"0": "ham", "1": "spam"})
    assert format_predictions(numbered, ["0"], np.array([1])).endswith("0\t1\n")


def test_rows_are_known_by_the_index_of_their_file_or_by_their_number(tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence\n3\ta\n1\tb\n")
    assert read_index(TASKS["sst-2"], tmp_path, "test") == ["3", "1"]
    (tmp_path / "test.tsv").write_text("sentence\na\nb\n")
    assert read_index(TASKS["sst-2"], tmp_path, "test") == ["0", "1"]
    (tmp_path / "test.tsv").write_text("id\tquestion1\tquestion2\n4\ta\tb\n\n4\tc\td\n")
    with pytest.raises(DataError, match=r"test.tsv, line 4, column 'id': '4' names a row above too"):
        read_index(TASKS["qqp"], tmp_path, "test")


def test_the_diagnostic_set_is_beside_the_tasks_folder_also_when_that_is_a_link(tmp_path):
    (tmp_path / "glue" / "diagnostic").mkdir(parents=True)
    (tmp_path / "glue" / "diagnostic" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "glue" / "MNLI").symlink_to(tmp_path / "elsewhere")
    found = find_test_splits(TASKS["mnli"], tmp_path / "glue" / "MNLI")
    assert found == {"diagnostic": "AX.tsv"}


def test_a_submission_holds_its_files_flat_and_is_the_same_every_time():
    content = submission_zip({"RTE.tsv": "b", "CoLA.tsv": "a"})
    assert content == submission_zip({"CoLA.tsv": "a", "RTE.tsv": "b"})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["CoLA.tsv", "RTE.tsv"]
        assert archive.read("RTE.tsv") == b"b"


def test_every_file_of_the_benchmark_is_made_from_a_split_that_there_is():
    names = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX".split()
    assert sorted(set(SUBMISSION_FILES.values())) == sorted(f"{name}.tsv" for name in names)
    assert all(split in TASKS[task].splits for task, split in SUBMISSION_FILES)
