"""What is odd about a split: told with counts, refused where it cannot be meant."""

from dataclasses import replace
from pathlib import Path

import pytest

from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_spec import SplitFile, TaskSpec
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import ConfigError, DataError

WORDS = TaskSpec(
    name="words",
    splits={name: SplitFile("t.tsv", ("text",), "label") for name in ("train", "dev")},
    metrics=("accuracy",),
    official=("accuracy",),
    label_names=("no", "maybe", "yes"),
)
SCORES = replace(WORDS, label_names=(), score_range=(0.0, 5.0))


def read(folder: Path, rows: list[str], spec: TaskSpec = WORDS, split: str = "train"):
    (folder / "t.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return read_split(spec, folder, split)


def test_a_token_a_line_is_refused(tmp_path):
    sentence = ["EU\tno", "rejects\tyes", "German\tno", "call\tyes", "", "Peter\tno", "Blackburn\tyes", ""]
    with pytest.raises(
        DataError, match=r"t.tsv: 12 of 12 rows hold a single word, in 4 groups between blank lines.*CoNLL"
    ):
        read(tmp_path, sentence * 2)
    chinese = ["中\tno", "国\tyes", "人\tno", ""] * 3
    with pytest.raises(DataError, match="CoNLL"):
        read(tmp_path, chinese)


def test_words_and_texts_between_blank_lines_are_read(tmp_path):
    assert len(read(tmp_path, ["good\tyes", "bad\tno"] * 10)) == 20  # no groups
    assert len(read(tmp_path, ["a good film\tyes", "bad\tno", ""] * 10)) == 20
    assert len(read(tmp_path, ["good\tyes", "", "bad\tno", ""] * 10)) == 20  # each is a group
    sentences = ["这部电影非常好看我很喜欢它的音乐\tyes", "这部电影非常难看我不喜欢它的音乐\tno", ""]
    assert len(read(tmp_path, sentences * 10)) == 20


def test_labels_of_tokens_are_refused_in_a_task_file(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "files: {train: a.tsv, dev: b.tsv}\ntext: t\nlabel: l\nlabels: [O, B-PER, I-PER]\nmetric: accuracy\n"
    )
    with pytest.raises(ConfigError, match="labels: O, B-PER, I-PER label the tokens of a text"):
        load_task_file(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    "rows",
    [
        ['"he said ""no"""\tyes', "plain\tno"],
        ['"a"\tyes', '"b"\tno', '"c"\tno'],
        ['"a, ""b"""\tyes', '"c ""d"" e"\tno'],
    ],
)
def test_quotation_marks_of_pandas_in_a_tab_separated_file_are_refused_until_it_is_said_what_they_are(tmp_path, rows):
    with pytest.raises(
        DataError, match=r"\d of \d texts stand in quotation .* in .*line 2; .*`quotes: true`, or `quotes: f"
    ):
        read(tmp_path, rows)
    layout = WORDS.splits["train"]
    meant = replace(WORDS, splits={"train": replace(layout, text_format=replace(layout.text_format, quotes=False))})
    assert read(tmp_path, rows, meant).texts[0][0] == rows[0].split("\t")[0]
    quoted = replace(WORDS, splits={"train": replace(layout, text_format=replace(layout.text_format, quotes=True))})
    assert read(tmp_path, rows, quoted).texts[0][0] == rows[0].split("\t")[0][1:-1].replace('""', '"')


def test_quotation_marks_that_belong_to_the_texts_are_read_and_doubtful_ones_told(tmp_path, caplog):
    assert len(read(tmp_path, ['"open\tyes', '"said"\tno', 'a "b" c\tmaybe'])) == 3
    assert caplog.text == ""
    assert len(read(tmp_path, ['"he ""said"""\tyes', 'a "b" c\tno'])) == 2
    assert "1 of 2 texts stand in quotation marks" in caplog.text
    assert "the marks are read as text" in caplog.text
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"he ""said"""\t1\nplain\t0\n')
    caplog.clear()
    assert len(read_split(TASKS["sst-2"], tmp_path, "train")) == 2  # GLUE's own files are never quoted
    assert "1 of 2 texts" in caplog.text


def test_empty_texts_are_counted_with_the_first_place_and_a_column_of_them_is_refused(tmp_path, caplog):
    assert len(read(tmp_path, ["a\tyes", "  \tno", "\tno"])) == 3
    assert "2 of 3 texts in column 'text' are empty, the first in" in caplog.text
    assert "t.tsv, line 3; they are kept" in caplog.text
    with pytest.raises(DataError, match=r"all 2 texts in column 'text' are empty"):
        read(tmp_path, [" \tyes", " \tno"])


def test_training_rows_of_one_class_are_refused_and_others_told(tmp_path, caplog):
    with pytest.raises(DataError, match=r"t.tsv: all 2 rows have the label 'yes'; there is nothing to learn"):
        read(tmp_path, ["a\tyes", "b\tYes"])
    assert len(read(tmp_path, ["a\tyes", "b\tyes"], split="dev")) == 2
    assert "all 2 rows have the label 'yes'; metrics say little" in caplog.text
    caplog.clear()
    assert len(read(tmp_path, ["a\tyes", "b\tno"])) == 2
    assert "no row has the label maybe; nothing can be learned about it" in caplog.text
    caplog.clear()
    assert len(read(tmp_path, ["a\tyes", "b\tno"], split="dev")) == 2
    assert caplog.text == ""


def test_training_scores_that_are_all_one_are_refused(tmp_path, caplog):
    with pytest.raises(DataError, match=r"all 3 scores are 2.5; there is nothing to learn"):
        read(tmp_path, ["a\t2.5", "b\t2.5", "c\t2.50"], SCORES)
    assert len(read(tmp_path, ["a\t2.5", "b\t2.5"], SCORES, split="dev")) == 2
    assert "all 2 scores are 2.5; metrics say little" in caplog.text
    assert len(read(tmp_path, ["a\t2.5", "b\t2"], SCORES)) == 2
