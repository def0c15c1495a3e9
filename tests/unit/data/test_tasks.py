import re
from pathlib import Path

import pytest
import yaml

from tinybert_ds.data.task_spec import describe_labels, find_label, label_ids
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tasks import TASKS, find_task
from tinybert_ds.errors import ConfigError

REVIEWS = """
files: {train: reviews.tsv, dev: held_out.tsv, test: final.tsv}
text: review
label: stars
labels: [no, yes, 3]
aliases: {N: no, "1": yes}
metric: [accuracy, macro_f1]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "reviews.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_sst2_knows_labels_by_name_by_number_and_in_capitals():
    spec = find_task("SST-2", None)
    assert spec is TASKS["sst-2"]
    words = ("0", "1", "negative", "Positive", " 1 ", "2")
    assert [find_label(label_ids(spec), word) for word in words] == [0, 1, 0, 1, 1, None]
    assert (spec.num_labels, spec.kind, spec.is_pair, spec.max_seq_length) == (2, "labels", False, 64)
    assert describe_labels(spec) == "negative (or 0), positive (or 1)"


def test_a_task_file_takes_labels_as_they_are_written(tmp_path):
    spec = load_task_file(write(tmp_path, REVIEWS))
    assert spec.name == "reviews"
    assert spec.label_names == ("no", "yes", "3")  # YAML itself would have read a truth value and a number
    assert [find_label(label_ids(spec), text) for text in ("NO", "n", "1", "3", "maybe")] == [0, 0, 1, 2, None]
    assert spec.splits["train"].file == "reviews.tsv"
    assert spec.splits["train"].label_required
    assert not spec.splits["test"].label_required
    assert spec.official == ("accuracy", "macro_f1")
    assert spec.max_seq_length == 64


def test_a_task_file_describes_regression_on_pairs_without_header(tmp_path):
    path = write(
        tmp_path,
        "name: similarity\nfiles: {train: a.tsv, val: b.tsv}\neval_split: val\nheader: false\ntext: [1, 2]\nlabel: 0\n"
        "score_range: [0, 5]\nmetric: [pearson, spearman]\n",
    )
    spec = load_task_file(path)
    assert (spec.name, spec.kind, spec.is_pair, spec.num_labels) == ("similarity", "scores", True, 1)
    assert spec.score_range == (0.0, 5.0)
    assert spec.eval_splits == ("val",)
    assert not spec.splits["train"].header
    assert spec.splits["train"].texts == ("1", "2")
    assert spec.max_seq_length == 128


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("metric:", "metrics:"), ["metrics: unknown key", "metric: missing"]),
        (("labels: [no, yes, 3]", "labels: [no]"), ["at least two different names"]),
        (("labels: [no, yes, 3]", "labels: [No, no]"), ["at least two different names"]),
        (("labels: [no, yes, 3]\n", ""), ["labels: missing", "score_range"]),
        (("label: stars", "label: stars\nscore_range: [0, 5]"), ["not both"]),
        (("[accuracy, macro_f1]", "pearson"), ["'pearson' is no metric for classification", "accuracy, f1, macro_f1"]),
        (("[accuracy, macro_f1]", "f1"), ["f1 is for two labels, found 3"]),
        (("N: no", "N: nein"), ["'N' stands for 'nein'", "no, yes, 3"]),
        (("dev: held_out.tsv, ", ""), ["needs `train` and `dev`", "found train, test"]),
        (
            ("dev: held_out.tsv, ", "dev: [a.tsv, [b.tsv]], "),
            ["files: dev: a file name or a list of them, found ['a.t"],
        ),
        (("dev: held_out.tsv, ", "dev: [], "), ["files: dev: a file name or a list of them, found none"]),
        (("text: review", "text: [a, b, c]"), ["one or two columns", "found 3"]),
        (("text: review", "text: review\nmax_seq_length: long"), ["max_seq_length", "'long'"]),
        (("text: review", "text: review\nheader: maybe"), ["header: true or false", "'maybe'"]),
        (("label: stars", "label: review"), ["column 'review' cannot be two of them"]),
        (("label: stars", "label: [stars, more]"), ["label: one column, found ['stars', 'more']"]),
        (("N: no", "N: no, YES: no"), ["'YES' stands for 'no' and for something else too"]),
        (("N: no", "N: no, n: yes"), ["'N' stands for 'no' and for", "'n' stands for 'yes' and for"]),
    ],
)
def test_a_task_file_that_cannot_be_is_refused_with_what_is_wrong(tmp_path, change, said):
    assert change[0] in REVIEWS
    with pytest.raises(ConfigError) as error:
        load_task_file(write(tmp_path, REVIEWS.replace(*change)))
    assert "reviews.yaml" in str(error.value)
    assert [part for part in said if part not in str(error.value)] == []


def test_all_problems_of_a_task_file_are_reported_together(tmp_path):
    text = (
        REVIEWS.replace("yes, 3]", "yes]").replace("[accuracy, macro_f1]", "pearson").replace("review\n", "[a, b, c]\n")
    )
    with pytest.raises(ConfigError, match="2 problems") as error:
        load_task_file(write(tmp_path, text))
    assert "one or two columns" in str(error.value)
    assert "pearson" in str(error.value)


@pytest.mark.parametrize("score_range", ["[5, 0]", "5", "15", "[0, x]", "[0, 1, 2]"])
def test_a_score_range_that_is_none_is_refused(tmp_path, score_range):
    text = f"files: {{train: a, dev: b}}\ntext: t\nlabel: s\nmetric: pearson\nscore_range: {score_range}\n"
    with pytest.raises(ConfigError, match="two numbers, the lower first"):
        load_task_file(write(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "not UTF-8"), (b"a: [", "not valid YAML"), (b"- a\n- b", "`key: value`"), (b"", "`key: value`")],
)
def test_a_task_file_that_is_no_yaml_mapping_is_refused(tmp_path, content, said):
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_task_file(path)


def test_a_missing_task_file_and_an_unknown_task_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*gone.yaml"):
        find_task(None, tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"no task 'sst2' \(did you mean sst-2\?\); known are cola, sst-2, mrpc"):
        find_task("sst2", None)


def test_the_task_files_of_other_targets_in_the_readme_can_be_read(tmp_path):
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").partition("### Other targets")[2]
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    specs = [load_task_file(write(tmp_path, block)) for block in blocks]
    assert [spec.kind for spec in specs] == ["multi_label", "tags", "spans", "scores"]
    assert specs[1].label_names == ("O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease")
    assert (specs[3].teacher.columns, specs[3].metrics) == (("teacher_score",), ("ndcg_10",))


def test_the_task_file_of_the_readme_can_be_read(tmp_path):
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8").partition("### Your own task")[2]
    first, more = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[:2]
    spec = load_task_file(write(tmp_path, first))
    assert (spec.label_names, spec.splits["train"].file) == (("reject", "accept"), "train.csv")
    both = {**yaml.load(first, Loader=yaml.BaseLoader), **yaml.load(more, Loader=yaml.BaseLoader)}
    spec = load_task_file(write(tmp_path, yaml.safe_dump(both)))
    assert (spec.name, spec.skip_labels, spec.splits["train"].more_files) == ("reviews", ("-",), ("more/*.csv.gz",))
    assert (spec.splits["dev"].text_format.separator, spec.splits["dev"].text_format.encoding) == (";", "cp1252")
