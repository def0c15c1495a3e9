"""Each task of GLUE in the files that the benchmark distributes."""

import pytest

from tests.support.glue_files import GLUE_FILES, NAMES, write_glue
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.tasks import TASKS, find_task_folder
from tinybert_ds.errors import DataError


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    root = tmp_path_factory.mktemp("glue")
    return root, write_glue(root)


def spelled(name, expected):
    """Return the labels of a file as values: scores, or the names that its spellings stand for."""
    if name == "sts-b":
        return [float(label) for label in expected.labels]
    return [NAMES[name][int(label)] if name in NAMES else label for label in expected.labels]


@pytest.mark.parametrize("name", GLUE_FILES)
def test_a_task_is_read_from_its_own_files(glue, name):
    root, files = glue
    spec, layout = TASKS[name], GLUE_FILES[name]
    folder = find_task_folder(spec, root)
    for split in ("train", *spec.eval_splits):
        expected = files[name, spec.splits[split].file]
        examples = read_split(spec, folder, split)
        assert list(zip(*examples.texts, strict=True)) == expected.texts
        labels = examples.labels.tolist()
        found = labels if spec.kind == "scores" else [spec.label_names[label] for label in labels]
        in_file = spelled(name, expected)
        assert found == (pytest.approx(in_file) if spec.kind == "scores" else in_file)
        assert examples.skipped_rows == (1 if layout.short_rows and split == "train" else 0)


@pytest.mark.parametrize("name", GLUE_FILES)
def test_a_test_file_has_no_labels_and_columns_of_its_own(glue, name):
    root, files = glue
    spec = TASKS[name]
    splits = [split for split in spec.splits if split.startswith("test")]
    assert [spec.splits[split].file for split in splits] == list(GLUE_FILES[name].test_files)
    for split in splits:
        examples = read_split(spec, find_task_folder(spec, root), split)
        assert examples.labels is None
        assert list(zip(*examples.texts, strict=True)) == files[name, spec.splits[split].file].texts


def test_mnli_is_judged_on_both_dev_sets_and_its_other_name_by_the_mismatched_one():
    assert TASKS["mnli"].eval_splits == ("dev", "dev_mismatched")
    assert TASKS["mnli-mm"].eval_splits == ("dev_mismatched", "dev")


def test_a_task_without_a_folder_is_told_which_folders_there_are(tmp_path):
    (tmp_path / "CoLA").mkdir()
    assert find_task_folder(TASKS["cola"], tmp_path) == tmp_path / "CoLA"
    with pytest.raises(DataError, match=r"no folder MNLI; it has CoLA"):
        find_task_folder(TASKS["mnli-mm"], tmp_path)
    with pytest.raises(DataError, match="is not a directory"):
        find_task_folder(TASKS["cola"], tmp_path / "nowhere")
