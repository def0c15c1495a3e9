"""The command that trims a vocabulary: what it counts, writes, refuses, and goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from data_tools import piece_counts, prepare_corpus, trim_vocabulary
from tests.support.language_models import language_model_directory
from tests.support.models import masked_lm_directory, model_directory, tiny_config, tiny_model, write_tokenizer
from tests.support.sentences import sentence_directory
from tests.support.vocabularies import KINDS, sentences
from tinybert_ds.data.part_vocabulary import always_kept
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.models.sentence.directory import read_modules

TEXT = "the film was good\nit was not bad\n\nthe film was long\n"


@pytest.fixture
def model(tmp_path) -> Path:
    return model_directory(tmp_path / "model")


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "a.txt"


def trim(model, *corpus, keep=50, out=None, more=()):
    directory = out or Path(model).parent / "out"
    words = ["--model", model, "--corpus", *corpus, "--keep", keep, "--output_dir", directory, *more]
    trim_vocabulary.main([str(word) for word in words])
    return directory


def counts_in(directory):
    return json.loads((directory / "trimmed.json").read_text())["counts"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_trimmed_model_makes_of_its_texts_what_the_whole_one_does(tmp_path, kind):
    tokenizer, model_type = KINDS[kind](), "bert" if kind == "WordPiece" else "xlm-roberta"
    tiny_model(model_type, vocab_size=max(tokenizer.get_vocab().values()) + 1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("\n".join(sentences(40, seed=3)), encoding="utf-8")
    out = trim(tmp_path / "model", tmp_path / "a.txt", keep=len(always_kept(tokenizer)) + 10_000)
    whole, part = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "model", out))
    assert len(part.get_vocab()) < len(whole.get_vocab())
    firsts, seconds = sentences(4, seed=3), sentences(8, seed=3)[4:]
    states = []
    for directory, reader in ((tmp_path / "model", whole), (out, part)):
        inputs = reader(firsts, seconds, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            states.append(AutoModel.from_pretrained(directory)(**inputs).last_hidden_state)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-5)


def test_what_is_not_kept_is_counted_and_told(model, text, capsys):
    out = trim(model, text, keep=5 + 7)
    counts = counts_in(out)
    assert (counts["tokens"], counts["used"], counts["kept"]) == (12, 8, 12)
    assert 0 < counts["left_out"] <= 9
    printed = capsys.readouterr().out
    assert "12 of " in printed
    assert f"{counts['left_out']:,} tokens of the corpus" in printed


def test_shards_and_the_text_they_were_made_of_give_the_same_vocabulary(model, text, tmp_path):
    words = ["--train_corpus", text, "--bert_model", model, "--output_dir", tmp_path / "shards"]
    prepare_corpus.main([str(word) for word in words])
    outs = [trim(model, corpus, out=tmp_path / name) for name, corpus in (("s", tmp_path / "shards"), ("t", text))]
    assert counts_in(outs[0]) == counts_in(outs[1])
    assert (outs[0] / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()


def test_json_lines_and_several_inputs_are_counted_together(model, text, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"body": "a dull plot"}\n', encoding="utf-8")
    out = trim(model, text, tmp_path / "b.jsonl", more=["--text_field", "body"])
    assert counts_in(out)["tokens"] == 12 + 3
    assert "dull" in AutoTokenizer.from_pretrained(out).get_vocab()


def test_a_second_start_does_nothing_and_one_that_was_killed_counts_only_what_is_left(
    model, text, tmp_path, monkeypatch, capsys
):
    (tmp_path / "b.txt").write_text("a dull plot\n", encoding="utf-8")
    count, seen = piece_counts._count_text, []

    def dying(item, *words, **more):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(item.name)
        return count(item, *words, **more)

    monkeypatch.setattr(piece_counts, "_count_text", dying)
    with pytest.raises(KeyboardInterrupt):
        trim(model, text, tmp_path / "b.txt")
    assert not (tmp_path / "out" / "config.json").exists()
    monkeypatch.setattr(
        piece_counts, "_count_text", lambda item, *w, **m: (seen.append(item.name), count(item, *w, **m))[1]
    )
    out = trim(model, text, tmp_path / "b.txt")
    assert seen == ["a.txt", "b.txt"]
    assert counts_in(out)["tokens"] == 15
    assert not (out / "unfinished").exists()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    trim(model, text, tmp_path / "b.txt")
    assert "finished; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_vocabulary_in_the_same_directory_is_refused(model, text, tmp_path):
    trim(model, text)
    with pytest.raises(ConfigError, match="made of something else: keep is 50 there and 51 now"):
        trim(model, text, keep=51)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files that are no trimmed vocabulary: notes\.txt"):
        trim(model, text, out=tmp_path / "mine")


def test_too_few_tokens_empty_texts_and_shards_of_another_tokeniser_are_refused(model, text, tmp_path):
    with pytest.raises(ConfigError, match="--keep is 5, but 5 special tokens and bytes"):
        trim(model, text, keep=5)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds not one token"):
        trim(model, tmp_path / "empty.txt")
    other = model_directory(
        tmp_path / "other", vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film"]
    )
    words = ["--train_corpus", text, "--bert_model", other, "--output_dir", tmp_path / "shards", "--allow_unknown"]
    prepare_corpus.main([str(word) for word in words])
    with pytest.raises(DataError, match="another tokeniser than that of --model"):
        trim(model, tmp_path / "shards")


def test_a_head_for_masked_words_and_one_for_labels_stay(text, tmp_path):
    out = trim(masked_lm_directory(tmp_path / "mlm"), text, out=tmp_path / "a")
    size = len(AutoTokenizer.from_pretrained(out))
    masked = AutoModelForMaskedLM.from_pretrained(out)
    assert masked(torch.tensor([[2, 3]])).logits.shape[-1] == size
    out = trim(model_directory(tmp_path / "fine", labels=["bad", "good"]), text, out=tmp_path / "b")
    assert AutoModelForSequenceClassification.from_pretrained(out).config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize("auto_class", [AutoModelForTokenClassification, AutoModelForQuestionAnswering])
def test_heads_for_tags_and_spans_stay(text, tmp_path, auto_class):
    write_tokenizer(tmp_path / "fine")
    whole = auto_class.from_config(tiny_config()).eval()
    whole.save_pretrained(tmp_path / "fine")
    out = trim(tmp_path / "fine", text)
    inputs = [
        AutoTokenizer.from_pretrained(directory)("the film", return_tensors="pt")
        for directory in (tmp_path / "fine", out)
    ]
    assert not torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
    with torch.no_grad():
        expected, found = whole(**inputs[0]), auto_class.from_pretrained(out)(**inputs[1])
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)


def test_what_makes_sentence_vectors_stays(text, tmp_path):
    encoder = sentence_directory(tmp_path / "encoder", pooling=("cls", "mean"), width=20, prompts={"query": "the "})
    out = trim(encoder, text)
    found, expected = read_modules(out, 48), read_modules(encoder, 48)
    assert (found.pooling, found.prompts, found.normalised) == (expected.pooling, expected.prompts, True)
    assert torch.equal(found.layers[0].weight, expected.layers[0].weight)


def test_a_tokeniser_without_cls_and_sep_is_refused_by_the_models_name_before_any_work(text, tmp_path):
    model = language_model_directory(tmp_path / "model", "qwen3")
    with pytest.raises(ModelError, match=r"the tokeniser '.*/model' has no cls_token, sep_token"):
        trim(model, text)
    assert not (tmp_path / "out").exists()
