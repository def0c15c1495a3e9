from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.corpora import SPECIAL_IDS, numbered_documents, write_corpus
from tinybert_ds.data import manifest as manifest_module
from tinybert_ds.data.manifest import (
    MANIFEST_NAME,
    Sampling,
    continuations,
    manifest_text,
    open_corpus,
    read_manifest,
    write_manifest,
)
from tinybert_ds.errors import DataError
from tinybert_ds.records import sealed


@pytest.fixture
def directory(tmp_path):
    sampling = Sampling(max_seq_len=64, masked_lm_prob=0.15, one_seq=True)
    return write_corpus(tmp_path / "corpus", numbered_documents(5, 2, 3), documents_per_shard=2, sampling=sampling)


def test_what_was_written_is_read_back(directory):
    manifest = read_manifest(directory)
    assert (manifest.documents, manifest.sentences, manifest.tokens) == (5, 10, 30)
    assert [shard.documents for shard in manifest.shards] == [2, 2, 1]
    assert manifest.special_ids == SPECIAL_IDS
    assert manifest.sampling == Sampling(max_seq_len=64, masked_lm_prob=0.15, one_seq=True)
    assert manifest_text(manifest) == (directory / MANIFEST_NAME).read_text(encoding="utf-8")


def test_a_corpus_is_its_shards_in_order(directory):
    corpus = open_corpus(directory)
    assert [token for shard in corpus.shards for token in shard.tokens.tolist()] == list(range(5, 35))


def test_the_fingerprint_names_the_content_not_the_options(directory):
    manifest = read_manifest(directory)
    write_manifest(directory, manifest.__class__(**{**manifest.__dict__, "options": {"x": 1}, "inputs": {}}))
    assert read_manifest(directory).fingerprint == manifest.fingerprint
    changed = manifest.__class__(**{**manifest.__dict__, "tokenizer_fingerprint": "another"})
    assert changed.fingerprint != manifest.fingerprint


def test_no_directory_and_an_unfinished_corpus_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="not a directory"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"not a finished corpus.* again with the same arguments"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format_version": 1}', '{"format_version": 1, "tokenizer": 3}'])
def test_a_damaged_manifest_is_named(directory, content):
    (directory / MANIFEST_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"manifest\.json' is damaged"):
        read_manifest(directory)


def test_another_format_version_is_refused(directory):
    content = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    content.pop("seal")
    (directory / MANIFEST_NAME).write_text(json.dumps(sealed({**content, "format_version": 2})), encoding="utf-8")
    with pytest.raises(DataError, match=r"format version 2; .* reads 1"):
        read_manifest(directory)


def test_a_shard_that_is_not_the_one_of_the_manifest_is_refused(directory, tmp_path):
    other = write_corpus(tmp_path / "other", numbered_documents(2, 2, 2))
    for suffix in (".bin", ".idx"):
        (other / f"shard-00000{suffix}").replace(directory / f"shard-00001{suffix}")
    with pytest.raises(DataError, match=r"shard-00001\.bin' is damaged: it has 16 bytes and should have 24"):
        open_corpus(directory)


def test_a_shard_of_other_counts_than_the_manifest_says_is_refused_when_it_is_read(directory):
    found = read_manifest(directory)
    shards = (found.shards[0], replace(found.shards[1], documents=3), found.shards[2])
    write_manifest(directory, replace(found, shards=shards))
    corpus = open_corpus(directory)
    assert corpus.shards[0].num_documents == 2
    with pytest.raises(DataError, match=r"'shard-00001' .* \(2, 4, 12\), but its manifest says \(3, 4, 12\)"):
        list(corpus.shards)


def test_only_so_many_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "_OPEN_SHARDS", 3)
    write_corpus(tmp_path, numbered_documents(10, 1, 2), documents_per_shard=1)
    descriptors = Path("/proc/self/fd")
    shards = open_corpus(tmp_path).shards
    before = len(list(descriptors.iterdir()))
    assert [shard.tokens.tolist() for shard in shards] == [[5 + 2 * i, 6 + 2 * i] for i in range(10)]
    assert [shard.tokens[0] for shard in shards[8:1:-3]] == [21, 15, 9]
    assert len(list(descriptors.iterdir())) - before <= 3 * 2


def test_continuations_are_the_pieces_marked_by_the_tokenizer(directory):
    mask = continuations((directory / "tokenizer.json").read_text(encoding="utf-8"), 1000)
    assert mask[900:].all()
    assert not mask[:900].any()


def test_whole_words_need_a_vocabulary_that_marks_pieces():
    with pytest.raises(DataError, match=r"begin with '##'.*--do_whole_word_mask"):
        continuations('{"model": {"vocab": {"a": 0}}}', 1000)


def test_whole_words_are_refused_where_text_is_cut_into_chinese_characters():
    characters = {chr(0x4E00 + number): number for number in range(40)}
    pieces = {f"##{number}": 40 + number for number in range(60)}
    with pytest.raises(DataError, match=r"cuts Chinese text into characters \(40 of its 100 tokens"):
        continuations(json.dumps({"model": {"vocab": characters | pieces}}), 1000)
    few = dict(list(characters.items())[:15]) | pieces
    assert continuations(json.dumps({"model": {"vocab": few}}), 1000).sum() == 60


@pytest.mark.parametrize("place", [34, 40, 50, -20, -9])  # lengths, offsets, documents
def test_an_index_whose_bytes_have_changed_is_refused_when_its_shard_is_first_read(directory, place):
    index = directory / "shard-00001.idx"
    content = bytearray(index.read_bytes())
    content[place] ^= 1
    index.write_bytes(content)
    corpus = open_corpus(directory)
    assert corpus.shards[0].num_documents == 2
    with pytest.raises(DataError, match=r"shard-00001\.idx' is damaged: its \d+ bytes have the hash"):
        list(corpus.shards)


def test_the_hash_of_an_index_is_looked_at_once_however_often_its_shard_is_mapped(directory, monkeypatch):
    looked_at = []
    monkeypatch.setattr(manifest_module, "_OPEN_SHARDS", 1)
    monkeypatch.setattr(manifest_module, "require_whole", lambda path, record: looked_at.append(path.name))
    shards = open_corpus(directory).shards
    assert [shards[number].num_documents for number in (0, 1, 0, 1, 2)] == [2, 2, 2, 2, 1]
    assert looked_at == ["tokenizer.json", "shard-00000.idx", "shard-00001.idx", "shard-00002.idx"]


def test_a_tokeniser_whose_bytes_have_changed_is_refused(directory):
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"5": 5', '"5": 6'))
    with pytest.raises(DataError, match=r"tokenizer\.json' is damaged: its \d+ bytes have the hash"):
        open_corpus(directory)


def test_a_manifest_with_another_value_is_refused_although_it_is_one(directory):
    path = directory / MANIFEST_NAME
    path.write_text(path.read_text().replace('"masked_lm_prob": 0.15', '"masked_lm_prob": 0.25'))
    with pytest.raises(DataError, match=r"manifest\.json' is damaged, or not of this program: its content is not what"):
        read_manifest(directory)


def shard_of(content):
    return content["shards"][0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["sampling"].update(max_seq_len="long"), "sampling.max_seq_len: Input should be a valid integer"),
        (lambda c: c["counts"].update(tokens=31), "its counts are not those of its shards"),
        (lambda c: c["tokenizer"]["special_ids"].update(mask=1000), "its special tokens are not in its vocabulary"),
        (lambda c: c["tokenizer"]["special_ids"].update(vocab_size=10**15), "its special tokens are not"),
        (lambda c: c["tokenizer"]["special_ids"].update(prefix=["a"]), "special_ids.prefix.0: Input should be a valid"),
        (lambda c: shard_of(c).update(name="../shard-00000"), "'../shard-00000' is not made of its two files"),
        (lambda c: shard_of(c)["files"].pop("shard-00000.idx"), "'shard-00000' is not made of its two files"),
        (lambda c: shard_of(c).update(dtype="int8"), "shards.0.dtype: Input should be 'int16', 'int32' or 'uint16'"),
        (lambda c: c.update(more=1), "more: Extra inputs are not permitted"),
        (lambda c: c.pop("sampling"), "sampling: Field required"),
    ],
)
def test_a_manifest_without_a_seal_is_looked_through(directory, change, told):
    path = directory / MANIFEST_NAME
    content = json.loads(path.read_text())
    content.pop("seal")
    path.write_text(json.dumps(content))
    read_manifest(directory)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_manifest(directory)
    assert told in str(caught.value)
