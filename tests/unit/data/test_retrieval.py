"""Retrieval sets in BEIR's layout."""

from __future__ import annotations

import json
import math

import pytest

from tests.support.sentences import write_retrieval
from tinybert_ds.data import retrieval
from tinybert_ds.data.retrieval import ndcg, open_retrieval
from tinybert_ds.errors import DataError

DOCUMENTS = [("d1", "River", "the long day"), ("d2", "", "a house"), ("d3", "City", "night")]
QUERIES = [("q1", "which river"), ("q2", "which house"), ("q3", "nobody judges this")]
JUDGEMENTS = [("q1", "d1", 2), ("q1", "d3", 1), ("q2", "d2", 1)]


@pytest.fixture
def directory(tmp_path):
    return write_retrieval(tmp_path / "small", documents=DOCUMENTS, queries=QUERIES, judgements=JUDGEMENTS)


def test_documents_have_their_titles_before_them_and_queries_are_those_that_are_judged(directory, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_DOCUMENTS", 2)
    found = open_retrieval(directory, "test")
    assert found.name == "small"
    assert list(found.documents()) == [(["d1", "d2"], ["River the long day", "a house"]), (["d3"], ["City night"])]
    assert found.queries == {"q1": "which river", "q2": "which house"}
    assert found.judgements == {"q1": {"d1": 2, "d3": 1}, "q2": {"d2": 1}}


def test_ndcg_is_what_the_definition_says(directory):
    judgements = open_retrieval(directory, "test").judgements
    perfect = {"q1": {"d1": 0.9, "d3": 0.8, "d2": 0.1}, "q2": {"d2": 0.7}}
    assert ndcg(judgements, perfect) == pytest.approx(1)
    turned = {"q1": {"d3": 0.9, "d1": 0.8}, "q2": {"d2": 0.7}}
    first = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert ndcg(judgements, turned) == pytest.approx((first + 1) / 2)
    assert ndcg(judgements, {"q1": perfect["q1"], "q2": {"d1": 0.5}}) == pytest.approx(0.5)


def test_what_is_not_in_the_layout_is_named(directory):
    with pytest.raises(DataError, match=r"train\.tsv does not exist; there is test"):
        open_retrieval(directory, "train")
    (directory / "qrels" / "odd.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\tyes\n")
    with pytest.raises(DataError, match=r"odd\.tsv, line 2"):
        open_retrieval(directory, "odd")
    (directory / "qrels" / "more.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td1\t1\n")
    with pytest.raises(DataError, match=r"lacks queries that .*more\.tsv judges: q9"):
        open_retrieval(directory, "more")
    with (directory / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "d1", "text": "again"}) + "\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 4: the document 'd1' stands there twice"):
        list(open_retrieval(directory, "test").documents())
    (directory / "queries.jsonl").write_text('{"id": "q1", "text": "x"}\n')
    with pytest.raises(DataError, match="_id and text"):
        open_retrieval(directory, "test")
    (directory / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no corpus\.jsonl"):
        open_retrieval(directory, "test")
