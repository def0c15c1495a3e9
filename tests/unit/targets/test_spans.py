"""A span of a context as the answer: files and their quirks, windows, losses, metrics and predictions."""

from __future__ import annotations

import gzip
import json
import math
import re

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForQuestionAnswering

from tests.support.models import VOCABULARY, model_directory, tiny_config, write_tokenizer
from tinybert_ds.data.batching import BEGINS, ENDS, IGNORED
from tinybert_ds.data.span_metrics import best_null_threshold, best_of, exact_match, normalised, token_f1
from tinybert_ds.data.task_batches import TaskSource
from tinybert_ds.data.task_files import read_split
from tinybert_ds.data.task_tokens import load_rows
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.models.pretrained import load_classifier, load_headed
from tinybert_ds.targets import TARGETS
from tinybert_ds.targets.spans import best_spans

SPANS = TARGETS["spans"]
CONTEXT = "the film was good and the city saw the river"
NONE = {"id": "b", "question": "who", "answers": []}
FILM = {"id": "a", "question": "what", "answers": [{"text": "film", "answer_start": 4}]}


def task(folder, file, more=""):
    text = f"target: spans\nfiles: {{train: {file}, dev: {file}, test: {file}}}\ntext: [question, context]\n"
    (folder / "task.yaml").write_text(text + f"label: answers\nmetric: [exact_match, answer_f1]\n{more}")
    return load_task_file(folder / "task.yaml")


def squad(*questions, context=CONTEXT):
    """Return the text of a nested file with one context."""
    paragraph = {"context": context, "qas": questions}
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]})


def read(folder, file, content, split="train"):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return what(read_split(task(folder, file), folder, split))


def what(found):
    return found.texts, None if found.labels is None else found.labels.tolist()


def test_nested_files_and_a_question_an_object_are_read_alike(tmp_path):
    expected = ((["what", "who"], [CONTEXT, CONTEXT]), [[4, 8], [-1, -1]])
    impossible = {"id": "b", "question": "who", "is_impossible": True, "plausible_answers": []}
    assert read(tmp_path, "t.json", squad(FILM, NONE)) == expected
    assert read(tmp_path, "t.json.gz", gzip.compress(squad(FILM, impossible).encode())) == expected
    flat = [{**FILM, "context": CONTEXT}, {**NONE, "context": CONTEXT}]
    assert read(tmp_path, "t.jsonl", "".join(json.dumps(row) + "\n" for row in flat)) == expected
    for row, count in zip(flat, (1, 0), strict=True):
        row["answers"] = {"text": ["film"][:count], "answer_start": [4][:count]}
    assert read(tmp_path, "list.json", json.dumps(flat)) == expected
    parquet.write_table(pyarrow.Table.from_pylist(flat), tmp_path / "t.parquet")
    assert what(read_split(task(tmp_path, "t.parquet"), tmp_path, "train")) == expected


def test_questions_without_ids_are_numbered_and_a_test_file_may_lack_answers(tmp_path):
    lines = [json.dumps({"question": word, "context": CONTEXT}) + "\n" for word in ("what", "who")]
    assert read(tmp_path, "t.jsonl", "".join(lines), split="test") == ((["what", "who"], [CONTEXT, CONTEXT]), None)
    spec = task(tmp_path, "t.jsonl")
    suffix, content = SPANS.prediction_file(spec, "test", [tmp_path / "t.jsonl"], np.array([[4, 8], [-1, -1]]), None)
    assert (suffix, json.loads(content)) == (".json", {"1": "film", "2": ""})


def test_an_answer_that_stands_elsewhere_is_taken_where_it_is_next_and_told(tmp_path, caplog):
    starts = (21, 20, 25, 40)
    rows = [{**FILM, "id": str(start), "answers": [{"text": " the ", "answer_start": start}]} for start in starts]
    _, labels = read(tmp_path, "t.json", squad(*rows))
    begins = [CONTEXT.index("the city")] * 3 + [CONTEXT.index("the river")]
    assert labels == [[begin, begin + 3] for begin in begins]
    assert "3 answers do not stand where `answer_start` says, the first of" in caplog.text
    assert "question '20'" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (squad({**FILM, "answers": [{"text": "road", "answer_start": 4}]}), "the answer 'road' is no part of its cont"),
        (squad(FILM, {**FILM, "question": "who"}), "question 'a' has the same id"),
        (squad({**FILM, "answers": ["film"]}), "question 'a': answers are"),
        (squad({**FILM, "answers": {"text": ["film"]}}), "question 'a': answers are"),
        (squad({**FILM, "answers": [{"text": "", "answer_start": 0}]}), "the answer '' at 0"),
        (squad({**FILM, "answers": [{"text": "film", "answer_start": "4"}]}), "the answer 'film' at 4; answers are"),
        (squad({"id": "a", "question": "what"}), "column 'answers': no answers"),
        (squad({"id": "a", "answers": []}), "question 'a', column 'question': no value"),
        (squad(FILM, context=None), "record 1, paragraph 1, question 'a', column 'context': no value"),
        ('{"data": [{"title": "t", "paragraphs": {}}]}', "record 1: paragraphs is a list of objects"),
        ('{"data": [{"title": "t", "paragraphs": [{"context": "x"}]}]}', "paragraph 1: qas is a list of objects"),
        ('{"data": []}', "holds no question"),
        (squad(NONE, {**NONE, "id": "c"}), "none of 2 questions has an answer"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_by_record_and_question(tmp_path, content, said):
    with pytest.raises(DataError, match=re.escape(said)):
        read(tmp_path, "t.json", content)


def test_other_files_and_task_files_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"t.tsv: questions with spans of a context are read from .json"):
        read(tmp_path, "t.tsv", "a\tb\n")
    with pytest.raises(ConfigError, match="labels: leave it out with `target: spans`"):
        task(tmp_path, "t.json", "labels: [a, b]\n")
    with pytest.raises(ConfigError, match="learns from no columns"):
        task(tmp_path, "t.json", "teacher: {columns: t}\n")


@pytest.fixture
def rows(tmp_path):
    """Return what loads the questions of a file as rows of at most 20 tokens."""
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "home").mkdir()

    def load(*questions, length=20, split="train", **changes):
        (tmp_path / "t.json").write_text(squad(*questions, **changes))
        tokenizer = load_tokenizer(tmp_path / "tokenizer", None)
        return load_rows(task(tmp_path, "t.json"), tmp_path, split, tokenizer, length, home=tmp_path / "home")

    return load


def marked(encoded, row):
    """Return the tokens of a row, those of its answer in capitals; where there is none the null token is."""
    part = slice(*encoded.offsets[row : row + 2])
    names, labels = [VOCABULARY[token] for token in encoded.tokens[part]], encoded.labels[part].tolist()
    begin, end = (next(at for at, label in enumerate(labels) if label > 0 and label & mark) for mark in (BEGINS, ENDS))
    return " ".join(name.upper() if begin <= at <= end else name.lower() for at, name in enumerate(names))


def test_a_row_is_the_question_and_a_window_whose_tokens_and_null_token_are_answered(rows):
    films = {"id": "a", "question": " we saw ", "answers": [{"text": "films was", "answer_start": 4}]}
    encoded = rows(films, NONE | {"question": "two"}, context="the films was good")
    assert marked(encoded, 0) == "[cls] we saw [sep] the FILM ##S WAS good [sep]"
    assert marked(encoded, 1) == "[CLS] two [sep] the film ##s was good [sep]"
    assert encoded.units[: encoded.offsets[1]].tolist() == [True, *[False] * 3, *[True] * 5, False]
    assert encoded.labels[: encoded.offsets[1]].tolist() == [0, *[IGNORED] * 3, 0, BEGINS, 0, ENDS, 0, IGNORED]
    assert encoded.columns["places"].tolist()[:6] == [[-1, -1], [0, 3], [4, 8], [8, 9], [10, 13], [14, 18]]
    assert (encoded.segment_a_lengths.tolist(), encoded.groups.tolist()) == ([4, 3], [0] * 6 + [1] * 6)
    assert rows({"id": "a", "question": "who"}, split="test").labels is None


def test_a_long_context_becomes_windows_that_overlap_and_its_answer_is_learned_where_it_is_whole(rows):
    context = " ".join(["day"] * 12 + ["bad", "film"] + ["night"] * 12)
    answer = {"text": "bad film", "answer_start": context.index("bad")}
    encoded = rows({"id": "a", "question": "one two", "answers": [answer]}, NONE, context=context)
    found = [marked(encoded, row) for row in range(int((encoded.columns["group"] == 0).sum()))]
    assert all(text.lower().startswith("[cls] one two [sep]") for text in found)
    whole = ["bad film" in text.lower() for text in found]
    assert 0 < sum(whole) < len(found)
    assert ["BAD FILM" in text for text in found] == whole == [not text.startswith("[CLS]") for text in found]
    places = encoded.columns["places"][encoded.groups == 0].tolist()
    begins = [begin for begin, _ in places if begin >= 0]
    assert sorted(set(begins)) == [match.start() for match in re.finditer(r"\w+", context)]
    assert len(begins) > len(set(begins))
    assert encoded.lengths.max() == 20


def test_a_question_never_takes_more_than_half_of_a_row(rows):
    encoded = rows({**FILM, "question": "film " * 40}, length=20)
    assert marked(encoded, 0).split(" ")[:10] == ["[cls]", *["film"] * 8, "[sep]"]
    with pytest.raises(ConfigError, match="a question and a window of its context need more"):
        rows(FILM, length=8)


def batch_of(encoded, *, rank=0, ranks=1):
    source = TaskSource(encoded, global_batch_size=2, max_seq_length=20, seed=1, padding="valid", pad_id=0)
    return source.micro_batches(0, 0, rank=rank, world_size=ranks, accumulation=1)[0]


def test_losses_are_means_over_rows_of_both_ends_and_see_answered_tokens_alone(rows):
    encoded = rows(FILM, NONE, context="the film was good")
    batch = batch_of(encoded)
    even = torch.zeros(int(batch.units.sum()), 2)
    assert float(SPANS.label_loss(even, batch)) == pytest.approx(math.log(5))
    assert float(SPANS.teacher_loss(even, even, batch, temperature=2.0)) == pytest.approx(math.log(5))
    marks = batch.labels[batch.units]
    right = torch.stack([(marks & mark > 0).float() * 50 for mark in (BEGINS, ENDS)], dim=1)
    assert float(SPANS.label_loss(right, batch)) == pytest.approx(0, abs=1e-6)
    assert float(SPANS.teacher_loss(right, right, batch, temperature=1.0)) == pytest.approx(0, abs=1e-6)


def test_the_losses_of_ranks_add_up_to_that_of_the_batch_and_one_without_rows_adds_nothing(rows):
    encoded = rows(FILM, NONE, context="the film was good")
    whole = batch_of(encoded)
    values = torch.randn(int(whole.units.sum()), 2, generator=torch.Generator().manual_seed(0))
    by_row = dict(zip(whole.sample_ids.tolist(), values.split(whole.units.sum(dim=1).tolist()), strict=True))
    sums = np.zeros(2)
    for part in [batch_of(encoded, rank=rank, ranks=3) for rank in range(3)]:
        own = [by_row[row] for row in part.sample_ids.tolist() if row >= 0]
        logits = torch.cat(own) if own else torch.zeros(0, 2)
        sums += float(SPANS.label_loss(logits, part)), float(SPANS.teacher_loss(logits, logits, part, temperature=1.0))
    expected = SPANS.label_loss(values, whole), SPANS.teacher_loss(values, values, whole, temperature=1.0)
    assert sums / 3 == pytest.approx([float(value) for value in expected])


def test_the_best_span_that_begins_at_each_token_is_found_as_by_trying_all():
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(6), [9, 40, 3, 50, 1, 20])
    inside = np.ones(len(rows), dtype=bool)
    inside[np.flatnonzero(np.diff(rows, prepend=-1))] = False
    logits = rng.normal(size=(len(rows), 2))
    scores, last = best_spans(logits, rows, inside)
    for begin in range(len(rows)):
        ends = [end for end in range(begin, min(begin + 30, len(rows))) if rows[end] == rows[begin] and inside[end]]
        found = [(logits[begin, 0] + logits[end, 1], end) for end in ends] if inside[begin] else []
        assert (scores[begin], last[begin]) == (max(found) if found else (-np.inf, begin))


def test_predictions_take_the_best_window_and_settle_from_where_there_is_no_answer(rows, tmp_path):
    context = " ".join(["day"] * 12 + ["film"] + ["night"] * 12)
    film = context.index("film")
    asked = FILM | {"answers": [{"text": "film", "answer_start": film}]}
    encoded = rows(asked, NONE, {**asked, "id": "c"}, context=context)
    spec, places = task(tmp_path, "t.json"), encoded.columns["places"]
    logits = np.zeros((encoded.num_units, 2), dtype=np.float32)
    logits[places[:, 0] == film] = 4.0
    logits[places[:, 0] < 0] = np.array([1.0, 7.0, 2.0])[encoded.groups][places[:, 0] < 0, None]
    logits[0] = 9.0  # of a window that does not see the answer: the lowest of all windows counts
    answers = SPANS.answers(logits, encoded.unit_offsets, encoded.columns)
    assert answers.tolist() == [[film, film + 4, 8.0, 2 * score] for score in (1, 7, 2)]
    gold = SPANS.gold(spec, "dev", [tmp_path / "t.json"], encoded.gold)
    settings = SPANS.settle(spec, answers, gold)
    assert settings["thresholds"].tolist() == [0.5, 0.5]  # between the margins -6, -4 and 6
    found = SPANS.predict(spec, answers, settings)
    assert found.tolist() == [[film, film + 4], [-1, -1], [film, film + 4]]
    assert SPANS.measure(spec, found, gold) == {"exact_match": 1.0, "answer_f1": 1.0}
    assert SPANS.measure(spec, SPANS.predict(spec, answers, {}), gold)["exact_match"] == pytest.approx(2 / 3)
    assert SPANS.settle(spec, answers[[0, 2]], [gold[0], gold[2]]) == {}  # SQuAD 1: there always is an answer


def test_answers_are_normalised_and_compared_as_squad_does():
    assert normalised(" The  U.S. President's an-swer, a ") == "us presidents answer"
    assert exact_match("the Denver Broncos!", "Denver broncos") == 1
    assert token_f1("Denver Broncos", "Denver Broncos of the AFC") == pytest.approx(2 * 2 / (2 + 4))
    assert token_f1("to be to", "to to do") == pytest.approx(2 * 2 / 6)
    assert (token_f1("", ""), token_f1("x", ""), token_f1("", "x"), token_f1("x", "y")) == (1, 0, 0, 0)
    assert best_of(exact_match, "two", ["2", "two"]) == 1
    assert (best_of(exact_match, "", []), best_of(token_f1, "x", [])) == (1, 0)


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(50):
        margins = rng.integers(-4, 5, 12).astype(float)
        answered, unanswered = rng.random(12), (rng.random(12) > 0.5).astype(float)
        threshold = best_null_threshold(margins, answered, unanswered)
        total = [np.where(margins > limit, unanswered, answered).sum() for limit in (*np.arange(-5, 6), threshold)]
        assert total[-1] == pytest.approx(max(total))


def test_the_head_is_one_for_spans(tmp_path):
    spec = task(tmp_path, "t.json")
    texts = model_directory(tmp_path / "texts", labels=("no", "yes"))
    with pytest.raises(ModelError, match=r"no fine-tuned classification head \(missing: qa_outputs"):
        load_headed(texts, SPANS.head(spec), role="teacher")
    model = AutoModelForQuestionAnswering.from_config(tiny_config())
    model.save_pretrained(tmp_path / "published")  # whose outputs have no names
    loaded = load_headed(tmp_path / "published", SPANS.head(spec), role="teacher")
    assert torch.equal(loaded.qa_outputs.weight, model.qa_outputs.weight)
    assert SPANS.columns(spec, loaded.config, None, role="teacher") == [0, 1]
    again = load_classifier(tmp_path / "published", label_names=("start", "end"), role="student", kind="spans")
    assert torch.equal(again.qa_outputs.weight, model.qa_outputs.weight)
    with pytest.raises(ModelError, match=r"has 3 outputs \(a, b, c\), a head for spans has start and end"):
        SPANS.columns(spec, tiny_config(id2label=dict(enumerate("abc"))), None, role="teacher")
