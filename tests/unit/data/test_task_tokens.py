import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from tests.support.models import write_tokenizer
from tinybert_ds.data import task_batches, task_tokens
from tinybert_ds.data.table_formats import augmented_split
from tinybert_ds.data.task_batches import EncodedExamples, encode
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_spec import TextFormat
from tinybert_ds.data.task_tokens import load_rows
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError

DIGESTS = {
    "own/train": "c1c07ffe8d1083b3",
    "own/test": "2ed4999f3005c2bf",
    "sst-2": "37e64da133b71a94",
    "sst-2 augmented": "37e64da133b71a94",
    "sts-b": "a3bf8d9345cb96b9",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder, None)


@pytest.fixture
def sst2(tmp_path):
    rows = ["sentence\tlabel", "a good film\t1", "long and dull\t0", "the actor saw the river\t1", "bad\t0"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "data"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def counted(monkeypatch):
    """Return a list that grows with every tokenisation."""
    calls: list[str] = []

    def row_encoder(tokenizer, length, *, pair):
        calls.append(str(length))
        return task_batches.row_encoder(tokenizer, length, pair=pair)

    monkeypatch.setattr(task_tokens, "row_encoder", row_encoder)
    return calls


def load(data: Path, tokenizer, home: Path, task: str = "sst-2", length: int = 16) -> EncodedExamples:
    return load_rows(TASKS[task], data, "train", tokenizer, length, home=home)


def rows_of(encoded: EncodedExamples) -> list[list[int]]:
    return [row.tolist() for row in np.split(encoded.tokens, encoded.offsets[1:-1])]


def hashes(home: Path) -> dict[str, str]:
    files = [path for path in home.rglob("*") if path.is_file()]
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("sst-2", "sentence\tlabel\na good film\t1\nlong and very dull, was it not?\t0\n"),
        (
            "rte",
            "index\tsentence1\tsentence2\tlabel\n0\tthe film\tit was good\tentailment\n1\ta\tb c\tnot_entailment\n",
        ),
    ],
)
def test_rows_from_the_disk_are_those_of_the_tokeniser(tmp_path, home, tokenizer, task, text):
    (tmp_path / "train.tsv").write_text(text)
    expected = encode(read_split(TASKS[task], tmp_path, "train"), tokenizer, 9)
    for _ in range(2):  # written, and read again
        found = load(tmp_path, tokenizer, home, task=task, length=9)
        assert rows_of(found) == rows_of(expected)
        assert found.segment_a_lengths.tolist() == expected.segment_a_lengths.tolist()
        assert found.labels.tolist() == expected.labels.tolist()
        assert found.labels.dtype == expected.labels.dtype
        assert not found.tokens.flags.owndata  # mapped, not read


def test_a_file_of_many_blocks_gives_the_rows_of_one(tmp_path, home, tokenizer, monkeypatch):
    rows = ["good\tbad\t0", "the film\tit\t1", "short", "also\tshort", "the actor saw\tthe river\t1", "a\tb c\t0"]
    (tmp_path / "train.tsv").write_text("\n".join(["question1\tquestion2\tis_duplicate", *rows]) + "\n")
    expected = load(tmp_path, tokenizer, home, task="qqp")
    monkeypatch.setattr("tinybert_ds.data.task_tables.BLOCK_ROWS", 2)  # the second block is empty
    (tmp_path / "other").mkdir()
    found = load(tmp_path, tokenizer, tmp_path / "other", task="qqp")
    assert found.skipped_rows == 2
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert rows_of(found) == rows_of(expected)
    assert hashes(home) == hashes(tmp_path / "other")


def test_scores_stay_float32_and_skipped_rows_are_counted(tmp_path, home, tokenizer):
    columns = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    (tmp_path / "train.tsv").write_text(f"{columns}\n0\t\t\t\t\t\t\ta film\tthe film\t3.250\n")
    scores = load(tmp_path, tokenizer, home, task="sts-b").labels
    assert (scores.dtype, scores.tolist()) == (np.float32, [3.25])
    rows = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tgood\tbad\t0\n4\t5\t6\tshort\n"
    (tmp_path / "train.tsv").write_text(rows)
    for _ in range(2):
        assert load(tmp_path, tokenizer, home, task="qqp").skipped_rows == 1


def test_a_file_is_tokenised_once_however_often_and_under_whatever_name_it_is_read(
    sst2, home, tokenizer, counted, tmp_path
):
    first = load(sst2, tokenizer, home)
    shutil.copytree(sst2, tmp_path / "copy")
    assert load(tmp_path / "copy", tokenizer, home).fingerprint == first.fingerprint
    assert len(counted) == 1


def test_another_content_tokeniser_length_or_reading_of_the_columns_is_tokenised_anew(
    sst2, home, tokenizer, counted, tmp_path
):
    load(sst2, tokenizer, home)
    load(sst2, tokenizer, home, length=5)
    write_tokenizer(tmp_path / "other", vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good"])
    load(sst2, load_tokenizer(tmp_path / "other", None), home)
    turned = replace(TASKS["sst-2"], label_names=("positive", "negative"))
    assert load_rows(turned, sst2, "train", tokenizer, 16, home=home).labels.tolist() == [0, 1, 0, 1]
    path = sst2 / "train.tsv"
    path.write_text(path.read_text().replace("a good film", "a good plot"))
    load(sst2, tokenizer, home)
    assert len(counted) == 5
    other_metric = replace(TASKS["sst-2"], metrics=("f1",), official=("f1",))
    load_rows(other_metric, sst2, "train", tokenizer, 16, home=home)
    assert len(counted) == 5


def test_one_content_is_read_anew_under_the_name_of_another_format(tmp_path, home, tokenizer):
    spec = replace(TASKS["sst-2"], splits={"train": replace(TASKS["sst-2"].splits["train"], file="train.csv")})
    for name in ("train.tsv", "train.csv"):
        (tmp_path / name).write_text("sentence,label\ngood,1\n")
    assert len(load_rows(spec, tmp_path, "train", tokenizer, 16, home=home)) == 1
    with pytest.raises(DataError, match=r"train\.tsv.* no column 'sentence'"):
        load(tmp_path, tokenizer, home)


def test_the_same_rows_are_written_with_the_same_bytes(sst2, home, tokenizer, tmp_path):
    (tmp_path / "other").mkdir()
    load(sst2, tokenizer, home)
    load(sst2, tokenizer, tmp_path / "other")
    assert hashes(home) == hashes(tmp_path / "other")
    assert len(hashes(home)) == 5


@pytest.mark.parametrize("name", ["rows.bin", "rows.idx", "labels.npy", "segments.npy", "record.json"])
@pytest.mark.parametrize("fault", ["changed", "cut", "missing"])
def test_a_damaged_file_is_noticed_and_made_anew(sst2, home, tokenizer, counted, name, fault):
    expected = load(sst2, tokenizer, home).fingerprint
    before = hashes(home)
    (path,) = home.rglob(name)
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if fault == "cut" else content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert load(sst2, tokenizer, home).fingerprint == expected
    assert len(counted) == 2
    assert hashes(home) == before


def test_a_large_vocabulary_is_kept_in_int32(sst2, home, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40_000)), "good"]
    write_tokenizer(tmp_path / "large", vocabulary=words)
    encoded = load(sst2, load_tokenizer(tmp_path / "large", None), home)
    assert encoded.tokens.dtype == np.int32
    assert rows_of(encoded)[0] == [2, 1, 40_005, 1, 3]


def test_errors_of_the_file_are_those_of_the_reader_and_leave_nothing(sst2, home, tokenizer):
    path = sst2 / "train.tsv"
    path.write_text("sentence\tlabel\ngood\t7\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 2, column 'label': task sst-2 has no label '7'"):
        load(sst2, tokenizer, home)
    path.write_text("sentence\tlabel\ngood\t1\n")
    with pytest.raises(ConfigError, match="max_seq_length is 2"):
        load(sst2, tokenizer, home, length=2)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*train\.tsv"):
        load(sst2, tokenizer, home)
    assert list(home.iterdir()) == []


def test_the_record_says_what_was_tokenised(sst2, home, tokenizer):
    load(sst2, tokenizer, home)
    (path,) = home.rglob("record.json")
    key = json.loads(path.read_text())["key"]
    assert key["file"]["bytes"] == (sst2 / "train.tsv").stat().st_size
    assert key["max_seq_length"] == 16
    assert path.parent.name.startswith("tokens-train-")


def test_what_was_kept_of_a_task_before_it_could_say_more_stays_valid(tmp_path):
    """The digests are those of version 0.1 before files could be separated, encoded and quoted as a task says."""
    (tmp_path / "task.yaml").write_text(
        "files: {train: a.csv, dev: b.jsonl, test: c.tsv}\ntext: [x, y]\nlabel: l\nlabels: [a, b]\naliases: {q: a}\n"
        "metric: accuracy\n"
    )
    own = load_task_file(tmp_path / "task.yaml")
    augmented = replace(TASKS["sst-2"], splits={"train": augmented_split(TASKS["sst-2"].splits["train"])})
    found = {
        "own/train": task_tokens._what_decides(own, "train"),
        "own/test": task_tokens._what_decides(own, "test"),
        "sst-2": task_tokens._what_decides(TASKS["sst-2"], "train"),
        "sst-2 augmented": task_tokens._what_decides(augmented, "train"),
        "sts-b": task_tokens._what_decides(TASKS["sts-b"], "dev"),
    }
    digests = {name: task_tokens._digest(content) for name, content in found.items()}
    assert digests == DIGESTS
    stated = replace(own.splits["train"], text_format=TextFormat(quotes=False))  # of a .csv this means something else
    other = task_tokens._what_decides(replace(own, splits={"train": stated}), "train")
    assert task_tokens._digest(other) != digests["own/train"]


def test_of_several_files_every_one_and_their_order_counts(tmp_path, home, tokenizer, counted):
    for number, label in enumerate("101"):
        (tmp_path / f"part-{number}.tsv").write_text(f"sentence\tlabel\ngood film {'x' * number}\t{label}\n")
    layout = replace(TASKS["sst-2"].splits["train"], file="part-*.tsv")

    def read(layout):
        return load_rows(replace(TASKS["sst-2"], splits={"train": layout}), tmp_path, "train", tokenizer, 16, home=home)

    assert read(layout).labels.tolist() == [1, 0, 1]
    listed = replace(layout, file="part-0.tsv", more_files=("part-1.tsv", "part-2.tsv"))
    assert read(listed).labels.tolist() == [1, 0, 1]
    assert len(counted) == 1
    assert read(replace(listed, more_files=("part-2.tsv", "part-1.tsv"))).labels.tolist() == [1, 1, 0]
    (tmp_path / "part-2.tsv").write_text("sentence\tlabel\nbad\t0\n")
    assert read(layout).labels.tolist() == [1, 0, 0]
    assert len(counted) == 3


def test_a_directory_of_datasets_is_tokenised_once(tmp_path, home, tokenizer, counted):
    Dataset.from_dict({"sentence": ["good", "bad film"], "label": [1, 0]}).save_to_disk(tmp_path / "saved")
    spec = replace(TASKS["sst-2"], splits={"train": replace(TASKS["sst-2"].splits["train"], file="saved")})
    for _ in range(2):
        assert load_rows(spec, tmp_path, "train", tokenizer, 16, home=home).labels.tolist() == [1, 0]
    assert len(counted) == 1
