"""The command that judges sentence encoders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.support.runs import run_ranks
from tests.support.sentences import random_texts, sentence_directory, write_retrieval
from tinybert_ds.data import retrieval
from tinybert_ds.data.retrieval import open_retrieval
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.stages.embed_evaluate import Encoder, rank_documents
from tinybert_ds.stages.sentence_encoders import read_sentence_directory

pytestmark = pytest.mark.slow  # whole commands


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """Return a retrieval set in which each query is one of its documents, word for word."""
    texts = random_texts(12)
    return write_retrieval(
        tmp_path_factory.mktemp("sets") / "small",
        documents=[(f"d{n}", "", text) for n, text in enumerate(texts)],
        queries=[(f"q{n}", texts[n]) for n in (3, 7)],
        judgements=[("q3", "d3", 1), ("q7", "d7", 1)],
    )


def evaluate(folder, *words, world_size=1, name="out"):
    arguments = [*words, "--output_dir", folder / name]
    return run_ranks("embed_evaluate", arguments, world_size=world_size, log=folder / f"{name}.log")


def results(folder, name="out"):
    return json.loads((folder / name / "eval_results.json").read_text())


def test_likeness_and_retrieval_are_judged_by_any_number_of_ranks(sentence_inputs, small_set, tmp_path):
    words = ["--model", sentence_inputs / "teacher", "--sts", sentence_inputs / "dev.tsv", "--retrieval", small_set]
    for size, name in ((1, "one"), (2, "two")):
        evaluate(tmp_path, *words, world_size=size, name=name).check()
    found = results(tmp_path, "one")
    assert found.keys() == {"eval_dev_spearman", "eval_small_ndcg@10"}
    assert found["eval_small_ndcg@10"] == 1
    assert results(tmp_path, "two") == pytest.approx(found, abs=1e-6)


def test_the_documents_may_be_the_teachers_where_the_vectors_have_one_width(sentence_inputs, small_set, tmp_path):
    other = sentence_directory(tmp_path / "other", width=20, seed=3)
    words = ["--model", sentence_inputs / "teacher", "--retrieval", small_set, "--document_model", other]
    evaluate(tmp_path, *words).check()
    assert results(tmp_path)["eval_small_ndcg@10"] < 1
    narrow = sentence_directory(tmp_path / "narrow", width=19)
    refused = evaluate(tmp_path, "--model", narrow, "--retrieval", small_set, "--document_model", other, name="refused")
    assert refused.returncode == 2
    assert "width 19" in refused.output


def test_what_is_missing_is_said_before_a_model_is_loaded(sentence_inputs, tmp_path):
    refused = evaluate(tmp_path, "--model", sentence_inputs / "teacher", "--retrieval", tmp_path, name="b")
    assert refused.returncode == 2
    assert "has no corpus.jsonl" in refused.output


class Words:
    """An encoder whose vectors are written down: text -> vector."""

    def __init__(self, monkeypatch, table, prompts=None):
        self._table, self.asked = table, []
        monkeypatch.setattr("tinybert_ds.stages.embed_evaluate.encode_texts", self._encode)
        self.prompts = prompts

    def _encode(self, model, texts, tokenizer, **_):
        self.asked += texts
        return np.array([self._table[text] for text in texts], dtype=np.float32)


def test_rankings_are_by_cosine_over_all_blocks_and_leave_out_the_query_itself(
    sentence_inputs, tmp_path, monkeypatch, one_rank_group
):
    monkeypatch.setattr(retrieval, "BLOCK_DOCUMENTS", 2)
    directory = write_retrieval(
        tmp_path / "set",
        documents=[("same", "", "x"), ("near", "", "y"), ("far", "", "z"), ("long", "", "w")],
        queries=[("same", "x")],
        judgements=[("same", "near", 1)],
    )
    Words(monkeypatch, {"x": [1.0, 0.0], "y": [3.0, 1.0], "z": [-1.0, 0.0], "w": [9.0, 9.0]})
    encoder = Encoder(read_sentence_directory(str(sentence_inputs / "teacher"), None, role="model"), None)
    ranking = rank_documents(
        open_retrieval(directory, "test"), encoder, encoder, batch_size=4, world=World(0, 1, 0, None)
    )
    assert list(ranking["same"]) == ["near", "long", "far"]
    assert ranking["same"]["near"] == pytest.approx(3 / 10**0.5)


def test_queries_and_documents_have_the_prompts_of_their_names(tmp_path, monkeypatch, one_rank_group):
    prompts = {"query": "we saw : ", "document": "a house : "}
    directory = sentence_directory(tmp_path / "model", prompts=prompts)
    words = Words(monkeypatch, {"we saw : good": [1.0, 0.0], "a house : bad": [1.0, 0.0]})
    encoder = Encoder(read_sentence_directory(str(directory), None, role="model"), None)
    made = write_retrieval(
        tmp_path / "set", documents=[("d", "", "bad")], queries=[("q", "good")], judgements=[("q", "d", 1)]
    )
    rank_documents(open_retrieval(made, "test"), encoder, encoder, batch_size=4, world=World(0, 1, 0, None))
    assert words.asked == ["we saw : good", "a house : bad"]
