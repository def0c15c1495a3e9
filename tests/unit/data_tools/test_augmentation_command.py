from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from data_tools import augment_rows, augment_task, made_of
from data_tools.augmentation_files import AugmentationFiles
from data_tools.masked_words import MaskedWordModel
from tests.support.models import WORDS, masked_lm_directory, model_directory
from tests.support.runs import run_ranks
from tests.unit.data_tools.test_teacher_filter import teacher_judge
from tinybert_ds.data.table_formats import augmented_split
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_spec import SplitFile
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.errors import ConfigError, DataError, ModelError

pytestmark = pytest.mark.slow

SST2 = """sentence\tlabel
The film was "not" bad\t0
'a moving story , "brightest of the houses\t1
the of and\t1
Good music , good plot !\t1
a dull day\t0
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A masked language model, word vectors and a teacher."""
    folder = tmp_path_factory.mktemp("models")
    masked_lm_directory(folder / "mlm")
    model_directory(folder / "teacher", labels=["negative", "positive"], scale=1.5)
    rng = np.random.default_rng(1)
    words = ["houses", "moving", "brightest", "cities", "roads", "nights", "bright\u00a0side", '"quote', "film"]
    lines = [f"{word} " + " ".join(f"{x:.4f}" for x in rng.normal(size=6)) for word in words]
    (folder / "glove.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def glue(tmp_path):
    """A GLUE directory with SST-2's train file."""
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text(SST2, encoding="utf-8")
    return tmp_path


def command(models, glue, *more, task="SST-2"):
    words = ["--pretrained_bert_model", models / "mlm", "--glue_dir", glue, "--task_name", task]
    words += [] if "--no_glove" in more else ["--glove_embs", models / "glove.txt"]
    words += [] if "--num_workers" in more else ["--num_workers", 1]
    return [str(word) for word in (*words, *more)]


def run(models, glue, *more, task="SST-2"):
    augment_task.main(command(models, glue, *more, task=task))
    return (glue / task / "train_aug.tsv").read_bytes()


def rows_of(data):
    return [line.split("\t") for line in data.decode().rstrip("\n").split("\n")]


def test_each_row_is_followed_by_its_variants_and_read_back_as_written(models, glue):
    rows = rows_of(run(models, glue))
    original = [line.split("\t") for line in SST2.splitlines()]
    assert rows[0] == original[0]
    starts = [rows.index(row) for row in original[1:]] + [len(rows)]
    assert starts == sorted(starts)
    sizes = [end - begin for begin, end in pairwise(starts)]
    assert sizes[2] == 1  # nothing but stop words
    assert all(2 < size <= 21 for size in (*sizes[:2], *sizes[3:]))  # 20 draws for SST-2, and the row itself
    assert len({tuple(row) for row in rows}) == len(rows)
    for (begin, end), (_, label) in zip(pairwise(starts), original[1:], strict=True):
        assert {row[1] for row in rows[begin:end]} == {label}
    augmented = SplitFile("train_aug.tsv", ("sentence",), "label")
    examples = read_split(replace(TASKS["sst-2"], splits={"train": augmented}), glue / "SST-2", "train")
    assert examples.texts[0] == [row[0] for row in rows[1:]]
    assert any('"quote' in text for text in examples.texts[0])


def test_only_one_text_of_a_pair_is_varied_at_a_time_and_other_columns_stay(models, tmp_path):
    (tmp_path / "MRPC").mkdir()
    train = (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta good film\tA bad Plot\n0\t9\t7\tmusic\ta good film\n"
    )
    (tmp_path / "MRPC" / "train.tsv").write_bytes(b"\xef\xbb\xbf" + train.replace("\n", "\r\n").encode())
    rows = rows_of(run(models, tmp_path, task="MRPC"))
    assert rows[0] == ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    originals = [line.split("\t") for line in train.splitlines()[1:]]
    second = rows.index(originals[1])
    for original, own in ((originals[0], rows[1:second]), (originals[1], rows[second:])):
        assert own[0] == original
        changed = [[column for column in range(5) if row[column] != original[column]] for row in own[1:]]
        assert sorted(map(tuple, {tuple(columns) for columns in changed})) == [(3,), (4,)]
        assert changed == sorted(changed)
    same_text = [{row[3] for row in rows[1:second]}, {row[4] for row in rows[second:]}]
    assert same_text[0] != same_text[1]  # the same text in another row has draws of its own


def test_a_task_file_is_read_by_augmentation_as_by_training(models, tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(
        gzip.compress('Text;verdict\nGood films;1.0\n"a\tb; dull";-\n'.encode("utf-16"))
    )
    features = Features({"verdict": ClassLabel(names=["no", "yes"]), "Text": Value("string")})
    Dataset.from_dict({"Text": ["a dull day"], "verdict": [0]}, features=features).save_to_disk(tmp_path / "saved")
    (tmp_path / "task.yaml").write_text(
        "files: {train: [a.csv.gz, saved], dev: a.csv.gz}\nseparator: ;\nencoding: utf-16\ntext: text\nlabel: verdict\n"
        "labels: [no, yes]\naliases: {'1': yes, '0': no}\nskip_labels: [x]\nmetric: accuracy\n"
    )
    task = ["--task_file", str(tmp_path / "task.yaml"), "--data_dir", str(tmp_path)]
    words = ["--pretrained_bert_model", str(models / "mlm"), "--no_glove", "--num_workers", "1", *task]
    with pytest.raises(DataError, match=r"a.csv.gz, line 3, column 'verdict': task task has no label '-'"):
        augment_task.main(words)
    description = (tmp_path / "task.yaml").read_text().replace("[x]", '["-"]')
    (tmp_path / "task.yaml").write_text(description)
    augment_task.main(words)
    rows = rows_of((tmp_path / "train_aug.tsv").read_bytes())
    assert rows[0] == ["Text", "verdict"]
    originals = [["Good films", "1.0"], ["a dull day", "no"]]
    assert [row for row in rows if row in originals] == originals
    spec = load_task_file(tmp_path / "task.yaml")
    augmented = replace(spec, splits={"train": augmented_split(spec.splits["train"])})
    examples = read_split(augmented, tmp_path, "train")
    assert examples.texts[0] == [row[0] for row in rows[1:]]
    assert examples.labels.tolist() == [int(row[1] == "1.0") for row in rows[1:]]


def test_rows_with_one_premise_are_augmented_together(models, tmp_path, monkeypatch):
    monkeypatch.setitem(augment_task.BLOCK_ROWS, "cpu", 3)
    (tmp_path / "RTE").mkdir()
    rows = [["a good film", "the plot"], ["a bad plot", "good music"], ["a good film", "music moved"]]
    rows += [["a bad plot", "the film"], ["the music", "a film"], ["a good film", "bad music"], ["the plot", "a film"]]
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [
        f"{number}\t{first}\t{second}\t{'not_' * (number % 2)}entailment" for number, (first, second) in enumerate(rows)
    ]
    (tmp_path / "RTE" / "train.tsv").write_text("\n".join(lines) + "\n")
    asked = []
    candidates = MaskedWordModel.candidates

    def listening(self, maskings, count):
        asked.extend((masking.sentence.text, masking.piece) for masking in maskings)
        return candidates(self, maskings, count)

    monkeypatch.setattr(MaskedWordModel, "candidates", listening)
    written = rows_of(run(models, tmp_path, "--num_workers", "1", task="RTE"))
    order = [row[0] for row, following in pairwise([*written, [""]]) if row[0] != following[0]]
    assert order == ["index", *"0251346"]
    of_premises = [place for place in asked if place[0] in ("a good film", "a bad plot")]
    assert len(of_premises) == len(set(of_premises)) > 0


def test_a_file_without_header_and_one_with_short_rows_keep_their_form(models, tmp_path, capsys):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("gj04\t1\t\tThe music moved.\ngj04\t0\t*\tA film good\n")
    rows = rows_of(run(models, tmp_path, task="CoLA"))
    assert rows[0] == ["gj04", "1", "", "The music moved."]
    assert {tuple(row[:3]) for row in rows} == {("gj04", "1", ""), ("gj04", "0", "*")}

    (tmp_path / "QQP").mkdir()
    lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\ta film\ta plot\t0", "4\t5\t6\tlost"]
    (tmp_path / "QQP" / "train.tsv").write_text("\n".join(lines) + "\n")
    rows = rows_of(run(models, tmp_path, task="QQP"))
    assert {len(row) for row in rows} == {6}
    assert "1 rows of" in capsys.readouterr().out


def test_a_flag_decides_about_the_number_of_variants(models, glue):
    assert len(run(models, glue, "--N", "1").splitlines()) <= 1 + 2 * 5


def test_settings_and_seed_decide_about_the_output_and_nothing_else_does(models, glue, tmp_path_factory):
    def fresh(*more):
        folder = tmp_path_factory.mktemp("glue")
        (folder / "SST-2").mkdir()
        (folder / "SST-2" / "train.tsv").write_text(SST2, encoding="utf-8")
        return run(models, folder, *more)

    first = run(models, glue)
    assert fresh() == first
    others = [("--seed", "1"), ("--M", "3"), ("--p", "0.9"), ("--no_glove",)]
    assert len({first, *(fresh(*other) for other in others)}) == 5


@pytest.mark.parametrize(("dtype", "confidence"), [("fp32", 0), ("bf16", 0), ("bf16", 0.53)])
def test_any_number_of_workers_and_ranks_writes_the_same_bytes_in_every_precision(
    dtype, confidence, models, glue, tmp_path_factory
):
    rng = random.Random(3)
    words = [word for word in WORDS if not word.startswith("##")]
    rows = [f"{' '.join(rng.choices(words, k=rng.randint(1, 12)))}\t{rng.randint(0, 1)}" for _ in range(100)]
    (glue / "SST-2" / "train.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]))
    more = ["--dtype", dtype, "--teacher_filter", models / "teacher", "--teacher_confidence", confidence, "--N", 3]
    expected = run(models, glue, *more)
    output = glue / "SST-2" / "train_aug.tsv"
    output.unlink()
    assert run(models, glue, *more, "--num_workers", "2") == expected
    output.unlink()
    log = tmp_path_factory.mktemp("log") / "log"
    finished = run_ranks("augment_task", command(models, glue, *more), world_size=3, log=log).check()
    assert output.read_bytes() == expected
    assert "3 processes on cpu" in finished.output
    assert not (glue / "SST-2" / "train_aug.tsv.parts").exists()


def test_what_is_computed_together_is_part_of_what_a_file_is_made_of(models, glue, monkeypatch):
    run(models, glue)
    monkeypatch.setitem(augment_task.BLOCK_ROWS, "cpu", 2)
    with pytest.raises(DataError, match="rows of a block is 32 there and 2 now"):
        run(models, glue)


def test_texts_of_which_the_model_knows_hardly_a_word_are_refused_before_any_work(models, glue, capsys):
    (glue / "SST-2" / "train.tsv").write_text("sentence\tlabel\nфильм был хорош\t1\na film\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"3 of 5 tokens are unknown to the tokeniser \(60.0%\).*--allow_unknown"):
        run(models, glue)
    assert not (glue / "SST-2" / "train_aug.tsv.parts").exists()
    run(models, glue, "--allow_unknown")
    assert "warning: " in capsys.readouterr().out


def test_a_killed_augmentation_goes_on_where_it_was(models, glue, monkeypatch):
    monkeypatch.setitem(augment_task.BLOCK_ROWS, "cpu", 1)
    expected = run(models, glue)
    output = glue / "SST-2" / "train_aug.tsv"
    output.unlink()
    done = []
    augment = augment_rows.RowAugmenter.augment

    def augment_and_fail(self, block):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(block.number)
        return augment(self, block)

    monkeypatch.setattr(augment_rows.RowAugmenter, "augment", augment_and_fail)
    with pytest.raises(KeyboardInterrupt):
        run(models, glue)
    assert not output.exists()
    monkeypatch.setattr(
        augment_rows.RowAugmenter, "augment", lambda self, block: done.append(block.number) or augment(self, block)
    )
    assert run(models, glue) == expected
    assert done == [0, 1, 2, 3, 4]


def test_an_unfinished_augmentation_with_other_settings_is_left_alone_and_goes_with_the_end(models, glue, monkeypatch):
    expected = run(models, glue)
    (glue / "SST-2" / "train_aug.tsv").unlink()
    finish = AugmentationFiles.finish
    monkeypatch.setattr(AugmentationFiles, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(models, glue, "--seed", "7")
    monkeypatch.setattr(AugmentationFiles, "finish", finish)
    assert (glue / "SST-2" / "train_aug.tsv.parts").exists()
    assert run(models, glue) == expected
    assert not (glue / "SST-2" / "train_aug.tsv.parts").exists()


def test_a_finished_file_is_made_once_and_never_overwritten(models, glue, monkeypatch, capsys):
    expected = run(models, glue)
    monkeypatch.setattr(augment_task, "RowAugmenter", None)  # not even the models are loaded again
    assert run(models, glue) == expected
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"differs: --N is 20 there and 5 now; --seed is 42 there and 1 now\. Rename"):
        run(models, glue, "--N", "5", "--seed", "1")
    output = glue / "SST-2" / "train_aug.tsv"
    output.write_bytes(expected + b"more\t1\n")
    with pytest.raises(DataError, match="its content has changed"):
        run(models, glue)
    output.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="nothing says what it was made of"):
        run(models, glue)
    assert output.read_bytes() == expected + b"more\t1\n"


def test_a_run_killed_between_the_record_and_its_output_is_finished(models, glue, monkeypatch):
    write = made_of.write_atomically

    def fail_behind_record(path, content):
        write(path, content)
        if path.name == "train_aug.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(made_of, "write_atomically", fail_behind_record)
    with pytest.raises(KeyboardInterrupt):
        run(models, glue)
    assert not (glue / "SST-2" / "train_aug.tsv").exists()
    monkeypatch.setattr(made_of, "write_atomically", write)
    assert len(rows_of(run(models, glue))) > 6
    assert json.loads((glue / "SST-2" / "train_aug.json").read_text())["counts"]["rows"] == 5


def test_the_teacher_drops_variants_that_it_is_not_sure_of(models, glue, capsys):
    everything = rows_of(run(models, glue))
    (glue / "SST-2" / "train_aug.tsv").unlink()
    teacher = ("--teacher_filter", models / "teacher")
    unfiltered = rows_of(run(models, glue, *teacher, "--teacher_confidence", "0"))
    assert unfiltered == everything
    (glue / "SST-2" / "train_aug.tsv").unlink()
    judge = teacher_judge(models / "teacher")
    sure = judge.probabilities(([row[0] for row in everything[1:]],)).max(axis=1)
    threshold = float(np.sort(sure)[len(sure) // 2])
    capsys.readouterr()
    filtered = rows_of(run(models, glue, *teacher, "--teacher_confidence", str(threshold)))
    originals = [line.split("\t") for line in SST2.splitlines()]
    assert filtered[1:] == [
        row for row, p in zip(everything[1:], sure, strict=True) if row in originals or p >= threshold
    ]
    dropped, made = len(everything) - len(filtered), len(everything) - len(originals)
    assert dropped > 10
    assert f"{dropped:,} of {made:,} variants ({dropped / made:.1%})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--N", "0", "--M", "0", "--p", "1.5"), r"3 problems:\n.*--N is 0.*\n.*--M is 0.*\n.*--p is 1.5"),
        (("--dtype", "fp16"), "fp16 is not supported on a CPU"),
        (("--data_dir", "x"), "give one of --glue_dir and --data_dir"),
        (("--task_file", "x"), "give one of --task_name and --task_file"),
        (("--seed", "-1"), "must not be negative"),
        (("--num_workers", "0"), "--num_workers is 0"),
    ],
)
def test_wrong_flags_are_refused_together(models, glue, more, message):
    with pytest.raises(ConfigError, match=message):
        run(models, glue, *more)


def test_wrong_files_are_refused_before_anything_is_written(models, glue, tmp_path):
    def refused(error, message, words):
        before = sorted(path for path in glue.rglob("*"))
        with pytest.raises(error, match=message):
            augment_task.main([str(word) for word in words])
        assert sorted(path for path in glue.rglob("*")) == before

    usual = command(models, glue)
    refused(DataError, "has no folder CoLA; it has SST-2", [*usual, "--task_name", "CoLA"])
    refused(DataError, "is not a directory", [*usual, "--glue_dir", glue / "gone"])
    refused(ConfigError, "there is no task 'SST2'", [*usual, "--task_name", "SST2"])
    refused(DataError, "does not exist", [*usual, "--glove_embs", glue / "gone.txt"])
    refused(ModelError, "is not a directory", [*usual, "--pretrained_bert_model", glue / "gone"])
    refused(ModelError, "no head for masked words", [*usual, "--pretrained_bert_model", models / "teacher"])
    refused(ModelError, "no fine-tuned classification head|outputs", [*usual, "--teacher_filter", models / "mlm"])
    train = glue / "SST-2" / "train.tsv"
    train.write_text(SST2 + "odd\tneutral\n")
    refused(DataError, "line 7, column 'label': .*'neutral'", usual)
    train.unlink()
    refused(DataError, "cannot read", usual)


def test_a_regression_has_no_confidence(models, tmp_path):
    with pytest.raises(ConfigError, match="task sts-b is a regression"):
        run(models, tmp_path, "--teacher_filter", models / "teacher", task="STS-B")


def test_a_task_of_the_users_own_is_augmented_in_its_own_folder(models, tmp_path):
    (tmp_path / "learn.txt").write_text("7\ta good film\tx\n3\tbad music\ty\n")
    (tmp_path / "task.yaml").write_text(
        "files: {train: learn.txt, dev: d.txt}\nheader: false\ntext: 1\nlabel: 2\nlabels: [x, y]\nmetric: accuracy\n"
    )
    words = ["--pretrained_bert_model", models / "mlm", "--no_glove", "--data_dir", tmp_path, "--num_workers", 1]
    augment_task.main([str(word) for word in [*words, "--task_file", tmp_path / "task.yaml"]])
    rows = rows_of((tmp_path / "learn_aug.txt").read_bytes())
    assert rows[0] == ["7", "a good film", "x"]
    assert len(rows) > 10
    with pytest.raises(ConfigError, match="--task_file needs --data_dir"):
        augment_task.main(["--pretrained_bert_model", "m", "--no_glove", "--glue_dir", "g", "--task_file", "t"])
