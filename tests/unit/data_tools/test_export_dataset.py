"""Data sets of the `datasets` library as the files of a task."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from data_tools.export_dataset import main
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import ConfigError, DataError


def dataset(columns, labels=None):
    features = {name: Value("string") for name in columns if name != "label"}
    if "label" in columns:
        features["label"] = ClassLabel(names=labels) if labels else Value("float32")
    return Dataset.from_dict(columns, features=Features(features))


def export(source, output, task, *words):
    main(["--dataset", str(source), "--task_name", task, "--output_dir", str(output), *words])


def test_single_sentences_keep_their_labels_whatever_their_numbers(tmp_path):
    other_order = ["positive", "negative"]
    splits = {
        "train": dataset({"sentence": ["good\tone", "b\nad"], "label": [0, 1]}, other_order),
        "validation": dataset({"sentence": ['"quoted'], "label": [1]}, other_order),
        "test": dataset({"sentence": ["what", ""], "label": [-1, -1]}, other_order),
    }
    DatasetDict(splits).save_to_disk(tmp_path / "saved" / "sst2")
    export(tmp_path / "saved", tmp_path / "glue", "SST-2")
    spec, folder = TASKS["sst-2"], tmp_path / "glue" / "SST-2"
    train = read_split(spec, folder, "train")
    assert train.texts == (["good one", "b ad"],)
    assert train.labels.tolist() == [1, 0]
    assert read_split(spec, folder, "dev").texts == (['"quoted'],)
    test = read_split(spec, folder, "test")
    assert (test.texts, test.labels) == ((["what", ""],), None)


def test_mnli_comes_with_its_mismatched_sets_and_the_diagnostic_one(tmp_path):
    names = ["entailment", "neutral", "contradiction"]

    def pairs(text, label):
        return dataset({"premise": [text], "hypothesis": ["h"], "label": [label]}, names)

    train, dev, mismatched = pairs("a", 2), pairs("b", 0), pairs("c", 1)
    splits = {"train": train, "validation_matched": dev, "validation_mismatched": mismatched}
    splits |= {"test_matched": pairs("d", -1), "test_mismatched": pairs("e", -1)}
    DatasetDict(splits).save_to_disk(tmp_path / "mnli")
    DatasetDict({"test": pairs("f", -1)}).save_to_disk(tmp_path / "ax")
    export(tmp_path, tmp_path / "glue", "mnli")
    spec, folder = TASKS["mnli"], tmp_path / "glue" / "MNLI"
    found = {split: read_split(spec, folder, split) for split in spec.splits}
    assert {split: examples.texts[0] for split, examples in found.items()} == {
        "train": ["a"],
        "dev": ["b"],
        "dev_mismatched": ["c"],
        "test": ["d"],
        "test_mismatched": ["e"],
        "diagnostic": ["f"],
    }
    labels = {split: examples.labels.tolist() for split, examples in found.items() if examples.labels is not None}
    assert labels == {"train": [2], "dev": [0], "dev_mismatched": [1]}
    assert (tmp_path / "glue" / "diagnostic" / "diagnostic.tsv").is_file()


@pytest.mark.parametrize(
    ("task", "config", "columns", "names", "labels"),
    [
        ("cola", "cola", ("sentence",), ["unacceptable", "acceptable"], [1, 0]),
        ("mrpc", "mrpc", ("sentence1", "sentence2"), ["not_equivalent", "equivalent"], [0, 1]),
        ("qqp", "qqp", ("question1", "question2"), ["not_duplicate", "duplicate"], [1, 0]),
        ("qnli", "qnli", ("question", "sentence"), ["entailment", "not_entailment"], [1, 0]),
        ("rte", "rte", ("sentence1", "sentence2"), ["entailment", "not_entailment"], [0, 1]),
        ("wnli", "wnli", ("sentence1", "sentence2"), ["not_entailment", "entailment"], [1, 0]),
        ("sts-b", "stsb", ("sentence1", "sentence2"), None, [2.5, 0.0]),
    ],
)
def test_every_other_task_is_exported_in_its_own_columns(tmp_path, task, config, columns, names, labels):
    rows = dataset({**{column: [f"{column} a", f"{column} b"] for column in columns}, "label": labels}, names)
    DatasetDict({"train": rows, "validation": rows, "test": rows}).save_to_disk(tmp_path / config)
    export(tmp_path, tmp_path / "glue", task)
    spec = TASKS[task]
    for split in ("train", "dev"):
        examples = read_split(spec, tmp_path / "glue" / spec.directory, split)
        assert examples.texts == tuple([f"{column} a", f"{column} b"] for column in columns)
        assert examples.labels.tolist() == labels
    assert read_split(spec, tmp_path / "glue" / spec.directory, "test").labels is None


def test_a_task_of_the_users_own_from_parquet_files(tmp_path):
    rows = dataset({"body": ["x, y", "z"], "label": [0, 1]}, ["ham", "spam"])
    (tmp_path / "repository").mkdir()
    rows.to_parquet(tmp_path / "repository" / "train.parquet")
    rows.to_parquet(tmp_path / "repository" / "validation.parquet")
    (tmp_path / "task.yaml").write_text(
        "files: {train: train.csv, dev: dev.csv}\ntext: body\nlabel: label\nlabels: [spam, ham]\nmetric: accuracy\n"
    )
    words = ["--dataset", str(tmp_path / "repository"), "--task_file", str(tmp_path / "task.yaml")]
    main([*words, "--output_dir", str(tmp_path / "out")])
    examples = read_split(load_task_file(tmp_path / "task.yaml"), tmp_path / "out", "dev")
    assert (examples.texts, examples.labels.tolist()) == ((["x, y", "z"],), [1, 0])


def test_what_does_not_fit_is_refused_and_nothing_is_overwritten(tmp_path):
    rows = dataset({"sentence": ["a"], "label": [0]}, ["bad", "good"])
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "sst2")
    with pytest.raises(DataError, match=r"split train, row 1, column 'label': task sst-2 has no label 'bad'"):
        export(tmp_path, tmp_path / "glue", "sst-2")
    with pytest.raises(DataError, match=r"split train: no column question1, question2; it has sentence, label"):
        export(tmp_path / "sst2", tmp_path / "glue", "qqp")
    with pytest.raises(DataError, match=r"nowhere, configuration rte cannot be opened: .*[^.]\. Give"):
        export(tmp_path / "nowhere", tmp_path / "glue", "rte")
    with pytest.raises(ConfigError, match="one of --task_name and --task_file"):
        main(["--dataset", "x", "--output_dir", "y"])
    rows = dataset({"sentence": ["a"], "label": [0]}, ["negative", "positive"])
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "good" / "sst2")
    export(tmp_path / "good", tmp_path / "glue", "sst-2")
    export(tmp_path / "good", tmp_path / "glue", "sst-2")
    (tmp_path / "glue" / "SST-2" / "dev.tsv").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        export(tmp_path / "good", tmp_path / "glue", "sst-2")
    assert (tmp_path / "glue" / "SST-2" / "dev.tsv").read_text() == "mine"
    with pytest.raises(NotADirectoryError):  # which the command tells, see `files.file_error`
        export(tmp_path / "good", tmp_path / "glue" / "SST-2" / "dev.tsv", "sst-2")


@pytest.mark.parametrize(
    ("texts", "scores", "said"),
    [
        (["a", None], ["1", "2"], r"split train, row 2, column 'text': no value"),
        (["a", "b"], ["1", "x"], r"split train, row 2, column 'score': 'x' is no score"),
        (["a", "b"], [1.0, None], r"split train, row 2, column 'score': no value"),
        (["a", "b"], [1.0, 7.5], r"split train, row 2, column 'score': '7.5' is no score .* from 0 to 5"),
    ],
)
def test_a_row_without_text_or_score_is_named(tmp_path, texts, scores, said):
    whole = Dataset.from_dict({"text": ["a"], "score": [2.0]})
    rows = Dataset.from_dict({"text": texts, "score": scores})
    DatasetDict({"train": rows, "dev": whole}).save_to_disk(tmp_path / "saved")
    (tmp_path / "task.yaml").write_text(
        "files: {train: train.csv, dev: dev.csv}\ntext: text\nlabel: score\nscore_range: [0, 5]\nmetric: pearson\n"
    )
    words = ["--dataset", str(tmp_path / "saved"), "--task_file", str(tmp_path / "task.yaml")]
    with pytest.raises(DataError, match=said):
        main([*words, "--output_dir", str(tmp_path / "out")])


def test_a_test_split_that_is_evaluated_keeps_its_labels(tmp_path):
    rows = dataset({"body": ["x", "y"], "label": [0, 1]}, ["ham", "spam"])
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    text = (
        "files: {train: train.csv, test: test.csv}\ntext: body\nlabel: label\nlabels: [spam, ham]\nmetric: accuracy\n"
    )
    (tmp_path / "task.yaml").write_text(text + "eval_split: test\n")
    words = ["--dataset", str(tmp_path / "saved"), "--task_file", str(tmp_path / "task.yaml")]
    main([*words, "--output_dir", str(tmp_path / "out")])
    assert read_split(load_task_file(tmp_path / "task.yaml"), tmp_path / "out", "test").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("train", "more", "said"),
    [
        ("[a.tsv, b.tsv]", "", "a.tsv: a split is exported as one .tsv or .csv in UTF-8"),
        ("'train-*.tsv'", "", r"train-\*.tsv: a split is exported as one"),
        ("train.jsonl", "", "train.jsonl: a split is exported as one"),
        ("train.csv", "separator: ;", "train.csv: a split is exported as one .* without separator"),
        ("train.csv.gz", "", "train.csv.gz: exported files are not compressed"),
    ],
)
def test_a_task_file_whose_files_cannot_be_written_is_refused(tmp_path, train, more, said):
    (tmp_path / "task.yaml").write_text(
        f"files: {{train: {train}, dev: d.tsv}}\ntext: text\nlabel: label\nlabels: [no, yes]\nmetric: accuracy\n{more}"
    )
    rows = dataset({"text": ["a", "b"], "label": [0, 1]}, ["no", "yes"])
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    words = ["--dataset", str(tmp_path / "saved"), "--task_file", str(tmp_path / "task.yaml")]
    with pytest.raises(ConfigError, match=said):
        main([*words, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
