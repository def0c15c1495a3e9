"""Task files in the forms that people have: compressed, separated otherwise, in pieces, nested, numbered."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pyarrow import parquet

from tinybert_ds.data.table_formats import augmented_split
from tinybert_ds.data.task_files import read_labelled_blocks, read_split, split_files, without_tabs
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import zstd

ROWS = [("a good film", "yes"), ("a bad one, really", "no"), ('so "so"', "yes")]
CSV = 'text,label\na good film,yes\n"a bad one, really",no\n"so ""so""",yes\n'
TSV = 'text\tlabel\na good film\tyes\na bad one, really\tno\nso "so"\tyes\n'
TASK = "text: text\nlabel: label\nlabels: [no, yes]\nmetric: accuracy\n"


def task(folder: Path, train: str, more: str = "", base: str = TASK):
    path = folder / "task.yaml"
    path.write_text(f"files: {{train: {train}, dev: {train}, test: {train}}}\n{base}{more}", encoding="utf-8")
    return load_task_file(path)


def read(folder: Path, train: str, more: str = "", base: str = TASK, split: str = "train"):
    return read_split(task(folder, train, more, base), folder, split)


def assert_rows(examples, rows=ROWS):
    assert examples.texts == ([text for text, _ in rows],)
    assert examples.labels.tolist() == [int(label == "yes") for _, label in rows]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("t.csv.gz", gzip.compress),
        ("t.CSV.XZ", lzma.compress),
        ("t.csv.zst", zstd.compress),
        ("t.tsv.gz", gzip.compress),
        ("t.jsonl.gz", gzip.compress),
        ("t.json.zst", zstd.compress),
    ],
)
def test_text_files_may_be_compressed(tmp_path, name, pack):
    rows = [{"text": text, "label": label} for text, label in ROWS]
    content = {"csv": CSV, "tsv": TSV, "jsonl": "\n".join(map(json.dumps, rows)), "json": json.dumps(rows)}
    (tmp_path / name).write_bytes(pack(content[name.split(".")[1].lower()].encode()))
    assert_rows(read(tmp_path, name))


@pytest.mark.parametrize(("name", "pack"), [("t.csv.gz", gzip.compress), ("t.tsv.xz", lzma.compress)])
def test_a_damaged_compressed_file_is_named(tmp_path, name, pack):
    text = CSV if name == "t.csv.gz" else TSV
    content = pack(text.encode())
    for damaged in (content[:-8], b"", text.encode()):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name} is damaged or cut off"):
            read(tmp_path, name)


@pytest.mark.parametrize("name", ["t.xlsx", "data-00000-of-00001.arrow", "t.csv.bz2"])
def test_a_file_of_another_format_names_those_that_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(DataError, match=r"is not read; give .tsv, .csv, .* the whole directory that `save_to_disk`"):
        read(tmp_path, name)


def test_parquet_is_never_compressed_again(tmp_path):
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match=r"t.parquet.gz: Parquet is compressed inside"):
        read(tmp_path, "t.parquet.gz")


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("t.csv", CSV.replace(",yes", ";yes").replace(",no", ";no").replace("text,", "text;"), 'separator: ";"'),
        (
            "t.csv",
            CSV.replace(",yes", "\tyes").replace(",no", "\tno").replace("text,", "text\t"),
            "separator: tab\nquotes: true",
        ),
        ("t.txt", TSV.replace("\t", " ||| "), 'separator: " ||| "'),
        ("t.txt", CSV.replace(",yes", "|yes").replace(",no", "|no").replace("text,", "text|"), 'separator: "|"'),
        ("t.tsv", TSV.replace('so "so"', '"so ""so"""'), "quotes: true"),
        ("t.csv", TSV, "separator: tab\nquotes: false"),
        ("t.csv", TSV, 'separator: "\\t"'),
    ],
)
def test_what_separates_and_quotes_fields_can_be_stated(tmp_path, name, content, more):
    (tmp_path / name).write_text(content)
    assert_rows(read(tmp_path, name, more))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text;label\na;yes\n", r"Its first line holds ';': should the task file say `separator: ';'`\?"),
        ("text\tlabel\na\tyes\n", r"Its first line holds a tab: should the task file say `separator: '\\t'`\?"),
    ],
)
def test_a_separator_that_is_probably_meant_is_named(tmp_path, content, said):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path, "t.csv")
    (tmp_path / "t.tsv").write_text('"text"\t"label"\n"a"\t"yes"\n')
    with pytest.raises(DataError, match=r"quotation marks: should the task file say `quotes: true`"):
        read(tmp_path, "t.tsv")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "latin-1"])
def test_an_encoding_can_be_stated(tmp_path, encoding):
    rows = [("schöne Bäume", "yes"), ("größere Äpfel", "no")]
    (tmp_path / "t.csv").write_bytes("".join(["text,label\n", *(f"{t},{y}\n" for t, y in rows)]).encode(encoding))
    assert_rows(read(tmp_path, "t.csv", f"encoding: {encoding}"), rows)


def test_an_encoding_that_a_file_does_not_have_is_refused_with_the_place_and_the_likely_one(tmp_path):
    text = "Die Bäume blühen früh und die Käufer fragen nach größeren Äpfeln.,yes\n"
    (tmp_path / "t.csv").write_bytes(b"text,label\n" + (text * 30).encode("cp1252"))
    with pytest.raises(
        DataError, match=r"t.csv, line 2: byte 16 is not UTF-8; it looks like \w+; convert .* iconv -f"
    ) as error:
        read(tmp_path, "t.csv")
    assert "or say `encoding: " in str(error.value)
    with pytest.raises(
        DataError, match=r"line 2: byte 16 is not ascii, which `encoding` of the task file says; it looks"
    ):
        read(tmp_path, "t.csv", "encoding: ascii")
    (tmp_path / "t.csv").write_bytes(b"text,label\n")
    with pytest.raises(DataError, match=r"t.csv is not utf-16: "):
        read(tmp_path, "t.csv", "encoding: utf-16")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("encoding: utf-88", "encoding: a name that Python knows"),
        ("encoding: base64", "encoding: a name that Python knows"),
        ("separator: ''", "separator: what stands between two columns"),
        ("separator: '\"'", "separator: what stands between two columns"),
        ("quotes: maybe", "quotes: true or false, found 'maybe'"),
        ("separator: '||'\nquotes: true", "quotes: fields between separators of several characters"),
        ("skip_labels: [Yes]", "skip_labels: 'Yes' is one of labels"),
        ("seperator: ';'", r"seperator: unknown key \(did you mean separator\?\)"),
        ("max_seq_length: " + "9" * 5000, "max_seq_length: a whole number from 8 up"),
    ],
)
def test_a_format_that_cannot_be_is_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said) as error:
        task(tmp_path, "t.csv", more)
    assert len(str(error.value)) < 4000


def test_a_separator_of_files_that_need_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"separator: for text files only; t.jsonl, t.jsonl and 1 more names"):
        task(tmp_path, "t.jsonl", "separator: ';'")


def test_a_field_of_any_length_is_read(tmp_path):
    long = "word " * 60_000
    (tmp_path / "t.csv").write_text(f'text,label\n"{long}",yes\nshort,no\n')
    assert read(tmp_path, "t.csv").texts == ([long, "short"],)


def write_parquet(path: Path, rows, order=("text", "label")):
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    parquet.write_table(pyarrow.table({name: columns[name] for name in order}), path)


def test_lists_and_patterns_of_files_are_read_one_after_the_other(tmp_path):
    write_parquet(tmp_path / "train-00001-of-00002.parquet", ROWS[2:], order=("label", "text"))
    write_parquet(tmp_path / "train-00000-of-00002.parquet", ROWS[:2])
    assert_rows(read(tmp_path, "train-*.parquet"))
    (tmp_path / "a.csv").write_text("text,label\nb,no\n")
    (tmp_path / "b.jsonl").write_text('{"label": "yes", "text": "c"}\n')
    spec = task(tmp_path, "[a.csv, b.jsonl, 'train-*.parquet']")
    assert_rows(read_split(spec, tmp_path, "train"), [("b", "no"), ("c", "yes"), *ROWS])
    tables = [
        without_tabs(table, spec.splits["train"].text_format)
        for table, _ in read_labelled_blocks(spec, tmp_path, "train")
    ]
    assert [table.header for table in tables] == [["text", "label"]] * 4
    assert [fields for table in tables for _, fields in table.rows] == [["b", "no"], ["c", "yes"], *map(list, ROWS)]


def test_files_of_a_split_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nb,no\n")
    (tmp_path / "b.csv").write_text("text,label,id\nb,yes,1\n")
    with pytest.raises(
        DataError, match=r"b.csv has the columns text, label, id, but .*a.csv of the same split has text, label"
    ):
        read(tmp_path, "[a.csv, b.csv]")
    (tmp_path / "c.csv").write_text("b,no\n")
    (tmp_path / "d.csv").write_text("b,yes,1\n")
    places = TASK.replace("text: text", "text: 0").replace("label: label", "label: 1")
    with pytest.raises(DataError, match=r"d.csv has 3 columns, but .*c.csv .* has 2"):
        read(tmp_path, "[c.csv, d.csv]", "header: false", places)
    with pytest.raises(
        DataError, match=r"no file matches 'e\*.csv' of split train in --data_dir; .* a.csv, b.csv, c.csv, d.csv, task"
    ):
        read(tmp_path, "e*.csv")
    with pytest.raises(DataError, match=r"a.csv would be read twice"):
        read(tmp_path, "[a.csv, 'a*.csv']")
    with pytest.raises(DataError, match=r"cannot read .*gone.csv: No such file"):
        read(tmp_path, "[a.csv, gone.csv]")


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    (tmp_path / "t[1].csv").write_text(CSV)
    assert_rows(read(tmp_path, "'t[1].csv'"))
    (tmp_path / "d[2]").mkdir()
    (tmp_path / "d[2]" / "x1.csv").write_text(CSV)
    assert split_files(task(tmp_path, "'x?.csv'"), tmp_path / "d[2]", "train") == [tmp_path / "d[2]" / "x1.csv"]


def test_the_augmented_file_of_several_is_one_beside_them(tmp_path):
    found = [
        augmented_split(task(tmp_path, train, "encoding: latin-1").splits["train"])
        for train in ("d/t.csv.gz", "'d/t-*.parquet'", "[d/a.csv, b.csv]", "'*/t.csv'", "t.tsv.zst", "saved/train")
    ]
    assert [layout.file for layout in found] == [
        "d/t_aug.tsv",
        "d/train_aug.tsv",
        "d/train_aug.tsv",
        "t_aug.tsv",
        "t_aug.tsv",
        "saved/train_aug",
    ]
    assert all(not layout.more_files and layout.text_format.encoding == "" for layout in found)


def numbered(labels, names=("no", "yes")):
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"text": [text for text, _ in ROWS], "label": labels}, features=features)


def test_a_directory_of_datasets_is_read_with_the_names_of_its_classes(tmp_path):
    data = DatasetDict({"train": numbered([1, 0, 1]), "test": numbered([-1, -1, -1])})
    data.save_to_disk(tmp_path / "saved")
    assert_rows(read(tmp_path, "saved/train"))
    assert read(tmp_path, "saved/test", split="test").labels is None
    with pytest.raises(
        DataError, match=r"saved holds several splits: test, train; name one of them, such as saved/test"
    ):
        read(tmp_path, "saved")
    (tmp_path / "saved.more").mkdir()
    with pytest.raises(DataError, match=r"is a directory, and none that `save_to_disk` .* saved.more/\*.parquet"):
        read(tmp_path, "saved.more")
    (tmp_path / "saved" / "train" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"train cannot be read by `datasets`"):
        read(tmp_path, "saved/train")


def test_a_selection_of_a_dataset_is_that_selection(tmp_path):
    numbered([1, 0, 1]).select([2, 1]).save_to_disk(tmp_path / "saved")
    assert_rows(read(tmp_path, "saved"), [ROWS[2], ROWS[1]])


def test_numbers_of_classes_in_parquet_are_what_its_schema_says(tmp_path):
    numbered([0, 1, 0], names=("yes", "no")).to_parquet(tmp_path / "t.parquet")
    assert_rows(read(tmp_path, "t.parquet"))
    assert_rows(read(tmp_path, "t.parquet", "aliases: {'0': yes, '1': no}"))
    with pytest.raises(DataError, match=r"t.parquet says that label 0 is 'yes', the task file that it is 'no'"):
        read(tmp_path, "t.parquet", "aliases: {'0': no, '1': yes}")
    unknown = TASK.replace("[no, yes]", "[bad, good]")
    assert read(tmp_path, "t.parquet", "aliases: {'0': good, '1': bad}", unknown).labels.tolist() == [1, 0, 1]


def test_hidden_labels_of_a_test_file_are_no_labels_and_those_of_others_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na,-1\nb,-1\n")
    assert read(tmp_path, "t.csv", split="test").labels is None
    with pytest.raises(DataError, match=r"line 2, column 'label': task task has no label '-1'"):
        read(tmp_path, "t.csv")
    scores = "text: text\nlabel: label\nscore_range: [0, 5]\nmetric: pearson\n"
    assert read(tmp_path, "t.csv", "", scores, split="test").labels is None
    assert read(tmp_path, "t.csv", "", scores.replace("[0", "[-2"), split="test").labels.tolist() == [-1, -1]


def test_rows_with_a_skipped_label_are_left_out_where_labels_are_needed(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("text,label\na,yes\nb,-\nc,no\nd, -\n")
    caplog.set_level("INFO")
    assert_rows(read(tmp_path, "t.csv", 'skip_labels: ["-"]'), [("a", "yes"), ("c", "no")])
    assert "2 rows have a label of skip_labels (-) and are left out" in caplog.text
    with pytest.raises(DataError, match=r"line 3, column 'label': .* no label '-'; .* in skip_labels to leave such"):
        read(tmp_path, "t.csv")
    with pytest.raises(DataError, match="line 3"):  # of a test file every row is asked for
        read(tmp_path, "t.csv", 'skip_labels: ["-"]', split="test")


def test_numbers_that_pandas_wrote_as_floats_are_labels(tmp_path):
    base = TASK.replace("[no, yes]", "['0', '1', '2']")
    (tmp_path / "t.csv").write_text("text,label\na,1.0\nb,0.0\nc,2\n")
    assert read(tmp_path, "t.csv", base=base).labels.tolist() == [1, 0, 2]
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1.0}\n{"text": "b", "label": 2}\n')
    assert read(tmp_path, "t.jsonl", base=base).labels.tolist() == [1, 2]
    (tmp_path / "t.csv").write_text("text,label\na,1.5\n")
    with pytest.raises(DataError, match=r"no label '1\.5'"):
        read(tmp_path, "t.csv", base=base)
    (tmp_path / "t.csv").write_text("text,label\na,1\nb,1.0\n")
    assert read(tmp_path, "t.csv", base=TASK.replace("[no, yes]", "['1', '1.0']")).labels.tolist() == [0, 1]


def test_columns_are_found_whatever_their_capitals_unless_two_differ_by_them(tmp_path):
    (tmp_path / "t.csv").write_text(CSV.replace("text,label", " Text ,LABEL"))
    assert_rows(read(tmp_path, "t.csv"))
    (tmp_path / "t.jsonl").write_text('{"TEXT": null, "Label": "yes", "x": null}\n')
    with pytest.raises(DataError, match=r"line 1, column 'TEXT': no value"):
        read(tmp_path, "t.jsonl")
    (tmp_path / "t.csv").write_text("Text,text,label\nx,a,yes\ny,b,no\n")
    assert_rows(read(tmp_path, "t.csv"), [("a", "yes"), ("b", "no")])
    (tmp_path / "t.csv").write_text("Text,TEXT,label\nx,a,yes\ny,b,no\n")
    with pytest.raises(DataError, match=r"t.csv, line 1: 2 columns are called 'Text': the 1. and the 2.; rename them"):
        read(tmp_path, "t.csv")


def test_a_column_name_that_stands_twice_is_refused_where_the_task_reads_it(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,text\nx,yes,a\ny,no,b\n")
    with pytest.raises(DataError, match=r"2 columns are called 'text': the 1. and the 3."):
        read(tmp_path, "t.csv")
    assert read(tmp_path, "t.csv", base=TASK.replace("text: text", "text: 2")).texts == (["a", "b"],)
    (tmp_path / "t.csv").write_text("id,text,label,id\n1,x,yes,a\n2,y,no,b\n")
    assert_rows(read(tmp_path, "t.csv"), [("x", "yes"), ("y", "no")])
    twice = pyarrow.table([["a"], ["b"], ["yes"]], names=["text", "text", "label"])
    parquet.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t.parquet: the columns text stand there twice"):
        read(tmp_path, "t.parquet")


def test_a_long_line_does_not_make_a_long_message(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\na," + "x" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"no label 'x+'\.\.\. \(100,000 characters\)") as error:
        read(tmp_path, "t.csv")
    assert len(str(error.value)) < 700
    (tmp_path / "t.csv").write_text(",".join("column" + "y" * 1000 for _ in range(1000)) + "\n")
    with pytest.raises(DataError, match="no column") as error:
        read(tmp_path, "t.csv")
    assert len(str(error.value)) < 2500
