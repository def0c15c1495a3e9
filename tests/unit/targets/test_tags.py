"""A tag for each word: files and their quirks, windows, losses, metrics and predictions."""

from __future__ import annotations

import json
import lzma
import math
import re
from datetime import date

import numpy as np
import pyarrow
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from pyarrow import parquet
from transformers import AutoModelForTokenClassification

from tests.support.models import VOCABULARY, model_directory, tiny_config, write_tokenizer
from tinybert_ds.data.batching import IGNORED
from tinybert_ds.data.task_batches import TaskSource
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_tokens import load_rows
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.token_rows import windows
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.models.pretrained import load_classifier, load_headed
from tinybert_ds.targets import TARGETS

TAGS = TARGETS["tags"]
PLAIN = "labels: [O, B-PER, I-PER]\n"
CONLL = "Anna B-PER\nsaw O\n\nthe O\nriver O\n"
WORDS = [["Anna", "saw"], ["the", "river"]]
LABELS = [1, 0, 0, 0]


def task(folder, file, more="text: 0\nlabel: -1\n" + PLAIN, metric="entity_f1"):
    text = f"target: tags\nfiles: {{train: {file}, dev: {file}, test: {file}}}\nmetric: {metric}\n{more}"
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return load_task_file(folder / "task.yaml")


def sentences(examples):
    """Return the words of each sentence and the labels of all words."""
    cuts = np.flatnonzero(np.diff(examples.columns["group"])) + 1
    words = [part.tolist() for part in np.split(np.array(examples.texts[0], dtype=object), cuts)]
    return words, None if examples.labels is None else examples.labels.tolist()


def read(folder, file, content, more="text: 0\nlabel: -1\n" + PLAIN, split="train"):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return sentences(read_split(task(folder, file, more), folder, split))


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (CONLL, ""),
        (CONLL.replace(" ", "\t").replace("\n", "\r\n"), ""),
        ("\ufeff" + CONLL.rstrip(), ""),
        ("-DOCSTART- -X- O\n\n\n" + CONLL + "\n\n", ""),
        ("# a comment of many words\n" + CONLL, ""),
        ("Anna NNP x B-PER\nsaw VBD x O\n \t \nthe DT x O\nriver NN x O\n", ""),
    ],
)
def test_words_stand_in_lines_with_blank_lines_between_sentences(tmp_path, content, more):
    assert read(tmp_path, "t.txt", content) == (WORDS, LABELS)


def test_columns_may_be_named_in_the_first_line_and_files_compressed(tmp_path):
    content = "tag\tword\n" + "".join(f"{tag}\t{word}\n" for word, tag in [("Anna", "B-PER"), ("saw", "O")])
    named = read(tmp_path, "t.tsv", content, "text: word\nlabel: tag\n" + PLAIN)
    assert named == (WORDS[:1], LABELS[:2])
    assert read(tmp_path, "t.conll.xz", lzma.compress(CONLL.encode())) == (WORDS, LABELS)


def test_conll_u_is_read_without_ranges_and_comments(tmp_path):
    rows = ["# text = du zoo", "1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_"]
    rows += [f"{n}\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_" for n, word, tag in ((1, "de", "O"), (2, "le", "B-PER"))]
    assert read(tmp_path, "t.conllu", "\n".join(rows) + "\n", "text: 1\nlabel: 3\n" + PLAIN) == ([["de", "le"]], [0, 1])


@pytest.mark.parametrize("comment", ["# sent_id = 1", "# text = a b c d e f g", "# newdoc id = x\n# sent_id = 1"])
def test_comments_of_as_many_words_as_there_are_columns_or_named_are_left_out(tmp_path, comment):
    rows = [f"{n}\t{word}\t_\t{tag}\t_\t_\t_\t_\t_\t_" for n, word, tag in ((1, "de", "O"), (2, "#", "B-PER"))]
    content = "\n".join([comment, *rows, "", comment, *rows]) + "\n"
    found = read(tmp_path, "t.conllu", content, "text: 1\nlabel: 3\n" + PLAIN)
    assert found == ([["de", "#"], ["de", "#"]], [0, 1, 0, 1])


def test_a_word_that_is_a_hash_is_a_word(tmp_path):
    assert read(tmp_path, "t.txt", "# O\nthe B-PER\n") == ([["#", "the"]], [0, 1])
    assert read(tmp_path, "t.txt", "the O\n# O\nAnna B-PER\n") == ([["the", "#", "Anna"]], [0, 0, 1])


def test_objects_hold_lists_of_words_and_tags_or_of_their_numbers(tmp_path):
    more = "text: tokens\nlabel: ner\n" + PLAIN
    tags = [["B-PER", "O"], ["O", "O"]]
    lines = "".join(json.dumps({"tokens": w, "ner": t}) + "\n" for w, t in zip(WORDS, tags, strict=True))
    assert read(tmp_path, "t.jsonl", lines, more) == (WORDS, LABELS)
    features = {"tokens": Sequence(Value("string")), "ner": Sequence(ClassLabel(names=["B-PER", "O", "I-PER"]))}
    rows = Dataset.from_dict({"tokens": WORDS, "ner": [[0, 1], [1, 1]]}, features=Features(features))
    rows.to_parquet(tmp_path / "t.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for file in ("t.parquet", "saved"):
        assert sentences(read_split(task(tmp_path, file, more), tmp_path, "train")) == (WORDS, LABELS)


def test_a_test_file_may_lack_tags(tmp_path):
    assert read(tmp_path, "t.txt", "Anna\nsaw\n\nthe\nriver\n", split="test") == (WORDS, None)
    more = "text: tokens\nlabel: tags\n" + PLAIN
    assert read(tmp_path, "t.jsonl", '{"tokens": ["Anna"]}\n', more, split="test") == ([["Anna"]], None)


def test_entities_become_tags_by_their_scheme(tmp_path):
    for scheme, marks in (("BIO", "BI"), ("IOBES", "BIES")):
        spec = task(tmp_path, "t.txt", f"text: 0\nlabel: 1\nscheme: {scheme}\nlabels: [PER, LOC]\n")
        assert spec.label_names == ("O", *(f"{mark}-{name}" for name in ("PER", "LOC") for mark in marks))
    assert spec.max_seq_length == 128


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("t.txt", "Anna B-PER\nsaw O x\n", "t.txt, line 2: 3 columns, but the lines before it have 2"),
        ("t.txt", "the O\n\nAnna B-LOC\n", "t.txt, line 3, column '-1': task task has no tag 'B-LOC'; it has O, B-PER"),
        ("t.txt", "Anna\nsaw\n", "t.txt, line 1: no column '-1'; found 1 column: Anna"),
        ("t.txt", "\n\n", "holds no sentence"),
        ("t.txt", "Anna O\n\nsaw O\n", "all 2 rows have the label 'O'; there is nothing to learn"),
        ("t.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "line 1: 2 words in 'tokens', 1 tags in 'tags'"),
        ("t.jsonl", '{"tokens": "a b", "tags": ["O"]}\n', "column 'tokens': a list with an entry for each word"),
        (
            "t.jsonl",
            '{"tokens": ["a", "b"], "tags": ["O", "X"]}\n',
            "line 1, column 'tags', word 2: task task has no tag 'X'",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named_by_line_and_column(tmp_path, file, content, said):
    more = ("text: tokens\nlabel: tags\n" if file.endswith("jsonl") else "text: 0\nlabel: -1\n") + PLAIN
    with pytest.raises(DataError, match=re.escape(said)):
        read(tmp_path, file, content, more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("text: 0\nlabel: 1\nscheme: IOB\nlabels: [PER]\n", "scheme: one of BIO, IOBES, found 'IOB'"),
        ("text: 0\nlabel: 1\nscheme: BIO\nlabels: [B-PER]\n", "labels lists tags already (B-PER)"),
        ("text: [0, 1]\nlabel: 2\nlabels: [O, X]\n", "text: one column of words"),
        (
            "text: 0\nlabel: 1\nlabels: [O, X]\nteacher: {columns: [o, x]}\n",
            "teacher: columns: one of tags has an array for each word, in the order that `labels` may state; found o",
        ),
        (
            "text: 0\nlabel: 1\nscheme: BIO\nlabels: [X]\nteacher: {columns: t, labels: [X]}\n",
            "teacher: labels: X are not the task's, O, B-X, I-X",
        ),
    ],
)
def test_a_task_file_that_cannot_be_is_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        task(tmp_path, "t.txt", more)


def test_windows_overlap_and_answer_each_word_once_where_more_is_around_it():
    assert windows([1, 2, 1], 8) == [(0, 3, 0, 3)]
    assert windows([1] * 10, 8) == [(0, 8, 0, 7), (6, 10, 7, 10)]
    assert windows([9, 1], 4) == [(0, 1, 0, 1), (1, 2, 1, 2)]  # a word of more pieces than there is room for
    rng = np.random.default_rng(0)
    assert windows([1] * 10 + [10] + [1] * 3, 10) == [(0, 10, 0, 10), (10, 11, 10, 11), (11, 14, 11, 14)]
    for longest in [4] * 200 + [12] * 200 + [30] * 200:
        pieces = np.minimum(rng.integers(1, longest + 1, rng.integers(1, 60)), 12).tolist()
        found = windows(pieces, 12)
        assert [word for window in found for word in range(window.first, window.last)] == list(range(len(pieces)))
        for window in found:
            assert window.begin <= window.first < window.last <= window.end
            assert sum(pieces[window.begin : window.end]) <= 12


@pytest.fixture
def rows(tmp_path):
    """Return what loads the words of a file as rows of at most 8 tokens."""
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "home").mkdir()

    def load(content, length=8, split="train"):
        (tmp_path / "t.txt").write_text(content)
        tokenizer = load_tokenizer(tmp_path / "tokenizer", None)
        return load_rows(task(tmp_path, "t.txt"), tmp_path, split, tokenizer, length, home=tmp_path / "home")

    return load


def pieces_of(encoded, row):
    return [VOCABULARY[token] for token in encoded.tokens[encoded.offsets[row] : encoded.offsets[row + 1]]]


def test_the_first_piece_of_each_word_is_answered(rows):
    encoded = rows("films B-PER\nwas O\n\u200b I-PER\n\nthe O\n")
    assert pieces_of(encoded, 0) == ["[CLS]", "film", "##s", "was", "[UNK]", "[SEP]"]  # nothing is left of a zero-width
    assert encoded.units.tolist()[:6] == [False, True, False, True, True, False]
    assert encoded.labels.tolist()[:6] == [IGNORED, 1, IGNORED, 0, 2, IGNORED]
    assert (encoded.gold.tolist(), encoded.groups.tolist()) == ([1, 0, 2, 0], [0, 0, 0, 1])
    assert (encoded.unit_offsets.tolist(), encoded.num_units) == ([0, 3, 4], 4)
    unlabelled = rows("films\nwas\n", split="test")
    assert (unlabelled.labels, unlabelled.gold, unlabelled.num_units) == (None, None, 2)


def test_long_sentences_become_rows_whose_answers_follow_each_other(rows):
    words = [*["the", "film", "was", "good"] * 5]
    encoded = rows("".join(f"{word} {'B-PER' if word == 'film' else 'O'}\n" for word in words) + "\nbad I-PER\n")
    assert len(encoded) > 4
    assert encoded.lengths.max() == 8
    assert encoded.gold.tolist() == [1 if word == "film" else 0 for word in words] + [2]
    assert encoded.groups.tolist() == [0] * 20 + [1]


def test_batches_hold_units_and_labels_for_any_number_of_ranks(rows):
    encoded = rows("".join(f"film B-PER\n{'good O' + chr(10)}" * (n % 3 + 1) + "\n" for n in range(7)))
    options = {"max_seq_length": 8, "seed": 1, "padding": "valid", "pad_id": 0}
    source = TaskSource(encoded, global_batch_size=4, **options)
    for position in range(source.steps_in_epoch(0)):
        (whole,) = source.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
        parts = [source.micro_batches(0, position, rank=rank, world_size=4, accumulation=1)[0] for rank in range(4)]
        assert whole.counts.units == whole.units.sum() == sum(part.units.sum() for part in parts)
        assert all(part.counts.units in (whole.counts.units / 4, math.inf) for part in parts)
        assert (whole.labels[whole.units] >= 0).all()
        assert (whole.labels[~whole.units] == IGNORED).all()
        assert all(not part.units.any() for part in parts if part.sample_ids.tolist() == [-1])
        names = np.array(VOCABULARY, dtype=object)[whole.input_ids[whole.units].numpy()]
        assert [tag == 1 for tag in whole.labels[whole.units].tolist()] == [name == "film" for name in names]


def test_losses_are_means_over_the_words_of_the_global_batch(rows):
    encoded = rows("film B-PER\ngood O\n\nfilm O\n")
    source = TaskSource(encoded, global_batch_size=2, max_seq_length=8, seed=1, padding="valid", pad_id=0)
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    even = torch.zeros(3, 3)
    assert float(TAGS.label_loss(even, batch)) == pytest.approx(math.log(3))
    assert float(TAGS.teacher_loss(even, even, batch, temperature=2.0)) == pytest.approx(math.log(3) / 3)


def test_entities_are_judged_sentence_by_sentence_as_conlleval_does(tmp_path):
    spec = task(tmp_path, "t.txt", metric="[entity_f1, entity_precision, entity_recall, tag_accuracy]")
    truth = np.array([1, 2, 0, 1, 1], dtype=np.int16)  # B I O B | B: three entities
    found = np.array([1, 2, 0, 2, 2], dtype=np.int16)  # B I O I | I: a new sentence begins a new entity
    groups = np.array([0, 0, 0, 0, 1])
    assert TAGS.measure(spec, found, truth, groups) == {
        "entity_f1": 1.0,
        "entity_precision": 1.0,
        "entity_recall": 1.0,
        "tag_accuracy": pytest.approx(3 / 5),
    }
    half = np.array([1, 0, 0, 0, 1], dtype=np.int16)  # one of its two is right, of three
    assert TAGS.measure(spec, half, truth, groups)["entity_f1"] == pytest.approx(2 * 1 / (2 + 3))
    nothing = np.zeros(5, dtype=np.int16)
    assert TAGS.measure(spec, nothing, truth, groups)["entity_f1"] == 0.0
    assert TAGS.constant_answer(truth) == 1


@pytest.mark.parametrize(
    ("file", "content", "more", "expected"),
    [
        ("t.txt", "-DOCSTART- O\n\nAnna NN O\nsaw  VB O\n\n# c\nriver NN O\n", "text: 0\nlabel: 2\n", None),
        (
            "t.tsv",
            "O\tAnna\r\nO\tsaw\r\n\r\nO\triver\r\n",
            "text: 1\nlabel: 0\n",
            "B-PER\tAnna\r\nO\tsaw\r\n\r\nI-PER\triver\r\n",
        ),
        ("t.txt", "Anna\nsaw\n\nriver", "text: 0\nlabel: 1\n", "Anna B-PER\nsaw O\n\nriver I-PER\n"),
        (
            "t.jsonl",
            '{"id": 7, "tokens": ["Anna", "saw"], "tags": ["O", "O"]}\n{"tokens": ["river"]}\n',
            "text: tokens\nlabel: tags\n",
            '{"id": 7, "tokens": ["Anna", "saw"], "tags": ["B-PER", "O"]}\n{"tokens": ["river"], "tags": ["I-PER"]}\n',
        ),
        (
            "t.jsonl",
            '{"a": {"w": ["Anna", "saw"], "t": ["O", "O"]}}\n{"a": {"w": []}}\n{"a": {"w": ["river"]}}\n',
            "text: a.w\nlabel: a.t\n",
            '{"a": {"w": ["Anna", "saw"], "t": ["B-PER", "O"]}}\n{"a": {"w": [], "t": []}}\n'
            '{"a": {"w": ["river"], "t": ["I-PER"]}}\n',
        ),
    ],
)
def test_predictions_are_written_in_the_format_of_the_input(tmp_path, file, content, more, expected):
    (tmp_path / file).write_bytes(content.encode())
    if expected is None:
        expected = "-DOCSTART- O\n\nAnna NN B-PER\nsaw VB O\n\n# c\nriver NN I-PER\n"
    spec = task(tmp_path, file, more + PLAIN)
    groups = np.array([0, 0, 1])
    suffix, found = TAGS.prediction_file(spec, "test", [tmp_path / file], np.array([1, 0, 2]), groups)
    assert found == expected
    assert file.endswith(suffix)


def test_predictions_of_parquet_hold_its_dates_as_text(tmp_path):
    rows = [{"tokens": ["Anna", "saw"], "on": date(2026, 1, 2)}, {"tokens": ["river"], "on": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    spec = task(tmp_path, "t.parquet", "text: tokens\nlabel: tags\n" + PLAIN)
    tags, groups = np.array([1, 0, 2]), np.array([0, 0, 1])
    _, found = TAGS.prediction_file(spec, "test", [tmp_path / "t.parquet"], tags, groups)
    first, second = map(json.loads, found.splitlines())
    assert first == {"tokens": ["Anna", "saw"], "on": "2026-01-02", "tags": ["B-PER", "O"]}
    assert second == {"tokens": ["river"], "on": None, "tags": ["I-PER"]}


def test_the_head_is_one_for_tokens_and_no_other_is_taken_for_it(tmp_path):
    spec = task(tmp_path, "t.txt")
    texts = model_directory(tmp_path / "texts", labels=spec.label_names)
    with pytest.raises(ModelError, match=r"has a head for whole texts \(BertForSequenceClassification\)"):
        load_headed(texts, TAGS.head(spec), role="teacher")
    model = AutoModelForTokenClassification.from_config(tiny_config(id2label=dict(enumerate(spec.label_names))))
    model.save_pretrained(tmp_path / "tokens")
    loaded = load_headed(tmp_path / "tokens", TAGS.head(spec), role="teacher")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert TAGS.columns(spec, loaded.config, None, role="teacher") == [0, 1, 2]
    fresh = load_classifier(texts, label_names=spec.label_names, role="student", kind="tokens", seed=1)
    assert (type(fresh).__name__, fresh.config.problem_type) == ("BertForTokenClassification", None)


def test_a_package_that_is_missing_is_told_in_one_line_and_not_as_a_mistake_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tinybert_ds.targets.tags.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as told:
        task(tmp_path, "train.conll")
    said = "metric: entity metrics need seqeval: bash launchers/install.sh tags"
    assert str(told.value) == f"{tmp_path / 'task.yaml'}: {said}"
