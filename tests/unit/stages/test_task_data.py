from types import SimpleNamespace

import pytest
import torch

from tests.support.models import VOCAB_SIZE, tiny_config, write_tokenizer
from tests.support.runs import write_sentiment
from tinybert_ds.data.tasks import TASKS, find_task
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.stages.evaluate import require_results_directory
from tinybert_ds.stages.task_data import load_task

ALONE = World(0, 1, 0, torch.device("cpu"))
FLAGS = SimpleNamespace(max_seq_length=None, eval_batch_size=8, cache_dir=None, allow_unknown=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder, None)


def load(data_dir, tokenizer, splits, *, spec=TASKS["sst-2"], config=None, **flags):
    own = SimpleNamespace(**{**vars(FLAGS), **flags})
    return load_task(spec, data_dir, splits, tokenizer, config or tiny_config(), own, ALONE)


def test_a_tokeniser_with_ids_beyond_the_models_vocabulary_is_refused(tokenizer, tmp_path):
    write_sentiment(tmp_path, rows=8)
    load(tmp_path, tokenizer, ("train",))
    narrow = tiny_config(vocab_size=VOCAB_SIZE - 1)
    with pytest.raises(ConfigError, match=rf"ids up to {VOCAB_SIZE - 1}, .* {VOCAB_SIZE - 1} entries"):
        load(tmp_path, tokenizer, ("train",), config=narrow)


def test_an_evaluation_split_without_labels_is_refused_when_it_is_read(tokenizer, tmp_path):
    write_sentiment(tmp_path, rows=8)
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tgood\n")
    (tmp_path / "task.yaml").write_text(
        "files: {train: train.tsv, test: test.tsv}\ntext: sentence\nlabel: label\nlabels: [0, 1]\nmetric: accuracy\n"
        "eval_split: test\n"
    )
    spec = find_task(None, tmp_path / "task.yaml")
    with pytest.raises(DataError, match=r"the test split of task task \(test.tsv\) has no labels"):
        load(tmp_path, tokenizer, ("train", "test"), spec=spec)


def test_nothing_is_made_in_a_directory_without_the_task(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*train.tsv"):
        load(tmp_path, tokenizer, ("train",))
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_left_out_are_told_once_with_their_number(tokenizer, tmp_path, caplog):
    rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\ta film\tthe film\t1", "1\t3\t4\tcut off"]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    data = load(tmp_path, tokenizer, ("train",), spec=TASKS["qqp"])
    assert len(data.splits["train"]) == 1
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"{tmp_path / 'train.tsv'}: 1 rows lack fields and are left out"]


def test_results_go_to_a_new_directory_or_to_one_of_ours_and_nowhere_else(tmp_path):
    require_results_directory(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    for name in ("eval_results.json", "config.json", "run.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).touch()
        require_results_directory(folder)
    (tmp_path / "refused_run").mkdir()
    (tmp_path / "refused_run" / ".lock").touch()
    require_results_directory(tmp_path / "refused_run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis.tex; give an empty or new directory"):
        require_results_directory(tmp_path / "mine")
    with pytest.raises(ConfigError, match="is a file"):
        require_results_directory(tmp_path / "mine" / "thesis.tex")
    with pytest.raises(ConfigError, match="cannot be written"):
        require_results_directory(tmp_path / "mine" / "thesis.tex" / "below")


def write_words(directory, known: int, unknown: int) -> None:
    texts = [*["the city was good"] * known, *["\u7535\u5f71\u5f88\u597d"] * unknown]
    rows = ["sentence\tlabel", *(f"{text}\t{number % 2}" for number, text in enumerate(texts))]
    (directory / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_rows_whose_words_the_tokeniser_does_not_know_are_refused_unless_allowed(tokenizer, tmp_path, caplog):
    write_words(tmp_path, known=4, unknown=6)
    with pytest.raises(DataError, match=r"train\.tsv: 24 of 40 tokens are unknown .*\(60\.0%\).*--allow_unknown"):
        load(tmp_path, tokenizer, ("train",))
    assert len(load(tmp_path, tokenizer, ("train",), allow_unknown=True).splits["train"]) == 10
    assert "24 of 40 tokens are unknown" in caplog.text
    caplog.clear()
    write_words(tmp_path, known=9, unknown=1)
    load(tmp_path, tokenizer, ("train",))
    assert "4 of 40 tokens are unknown to the tokeniser (10.0%)" in caplog.text
    caplog.clear()
    write_words(tmp_path, known=10, unknown=0)
    load(tmp_path, tokenizer, ("train",))
    assert "unknown" not in caplog.text


def test_unknown_words_are_counted_in_rows_that_were_tokenised_before(tokenizer, tmp_path):
    write_words(tmp_path, known=0, unknown=3)
    load(tmp_path, tokenizer, ("train",), allow_unknown=True)
    with pytest.raises(DataError, match=r"12 of 12 tokens"):
        load(tmp_path, tokenizer, ("train",))
