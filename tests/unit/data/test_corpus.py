"""Whole epochs of small corpora: what is read, once, alike for all ranks, from any position."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.corpora import (
    FIRST_CONTINUATION,
    ROBERTA_IDS,
    numbered_documents,
    random_documents,
    write_corpus,
)
from tests.support.fixtures import SMALL_BLOCK
from tests.support.reading import all_tokens, epoch_of, source, step, text_rows, tokens_of
from tinybert_ds.data import blocks, corpus
from tinybert_ds.data.blocks import BLOCK_TOKENS, held_out_threshold, is_held_out
from tinybert_ds.data.manifest import Sampling
from tinybert_ds.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("small_blocks_and_windows")


@pytest.fixture(scope="module")
def documents() -> list[list[list[int]]]:
    return random_documents(200)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, documents) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents, documents_per_shard=70)


@pytest.mark.parametrize("changes", [{}, {"one_seq": True}, {"short_seq_prob": 0.5}, {"max_seq_length": 9}])
def test_every_token_is_used_exactly_once_in_an_epoch(directory, documents, changes):
    rows = text_rows(epoch_of(source(directory, one_seq=changes.pop("one_seq", True), **changes)))
    assert tokens_of(rows) == all_tokens(documents)


def test_exchanging_second_segments_loses_hardly_a_token(directory, documents):
    used, total = tokens_of(text_rows(epoch_of(source(directory)))), all_tokens(documents)
    assert used <= total
    assert used.total() / total.total() > 0.97


def test_rows_have_their_special_tokens_and_types_in_place(directory):
    reader = source(directory)
    for batch in epoch_of(reader):
        for ids, mask, types in zip(batch.input_ids, batch.attention_mask, batch.token_type_ids, strict=True):
            length = int(mask.sum())
            assert length <= 48
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            row = ids[:length].tolist()
            separators = [place for place, token in enumerate(row) if token == 3]
            assert row[0] == 2
            assert separators[-1] == length - 1
            assert len(separators) in (1, 2)
            assert types.tolist() == [int(separators[0] < place < length) for place in range(len(mask))]
            assert (ids[length:] == 0).all()


def test_roberta_rows_have_two_separators_between_segments(tmp_path):
    write_corpus(tmp_path, numbered_documents(20, 4, 5), special_ids=ROBERTA_IDS)
    batches = epoch_of(source(tmp_path, max_seq_length=24, short_seq_prob=0.0))
    rows = text_rows(batches)
    assert max(len(row) for row in rows) <= 24
    assert {tuple(np.diff([i for i, token in enumerate(row) if token == 3])[:1]) for row in rows} == {(1,)}


def test_without_exchange_rows_are_the_text_in_its_order(tmp_path):
    documents = numbered_documents(6, 4, 5)
    write_corpus(tmp_path, documents)
    rows = text_rows(epoch_of(source(tmp_path, one_seq=True, short_seq_prob=0.0, max_seq_length=13)))
    texts = sorted([token for token in row if token not in (2, 3)] for row in rows)
    # Ten tokens fit, so a chunk is two sentences of five.
    assert texts == sorted(document[i] + document[i + 1] for document in documents for i in (0, 2))


def test_half_of_the_pairs_are_of_two_documents(tmp_path):
    documents = [[[5 + number] * 4 for _ in range(40)] for number in range(200)]  # a document is one token
    write_corpus(tmp_path, documents)
    rows = text_rows(epoch_of(source(tmp_path, max_seq_length=19, short_seq_prob=0.0)))
    mixed = [len(set(row) - {2, 3}) == 2 for row in rows]
    assert np.mean(mixed) == pytest.approx(0.5, abs=0.06)  # 5 sigma of 2000 pairs
    assert not any(len(set(row) - {2, 3}) == 2 for row in text_rows(epoch_of(source(tmp_path, one_seq=True))))


def test_all_steps_but_the_last_are_full_and_sizes_are_known_beforehand(directory):
    reader = source(directory)
    sizes = [len(batch.sample_ids) for batch in epoch_of(reader)]
    assert sizes[:-1] == [16] * (len(sizes) - 1)
    assert sum(sizes) == reader.samples_in_epoch(0)
    assert sizes == [reader.samples_in_step(0, position) for position in range(len(sizes))]
    assert len(sizes) > 20  # several windows of 8 steps


def test_sample_ids_are_the_numbers_of_the_epoch(directory):
    reader = source(directory)
    ids = [number for batch in epoch_of(reader) for number in batch.sample_ids.tolist()]
    assert sorted(ids) == list(range(reader.samples_in_epoch(0)))


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (3, 2), (16, 1), (20, 1)])
def test_any_world_size_sees_the_same_rows_in_the_same_step(directory, world_size, accumulation):
    reader = source(directory, masked_lm_prob=0.15)
    for position in (0, 9, reader.steps_in_epoch(0) - 1):
        expected = sorted(text_rows([step(reader, position)]))
        found = []
        for rank in range(world_size):
            other = source(directory, masked_lm_prob=0.15)
            for batch in other.micro_batches(0, position, rank=rank, world_size=world_size, accumulation=accumulation):
                if batch.sample_ids[0] >= 0:
                    found += text_rows([batch])
        assert sorted(found) == expected


def test_starting_anywhere_gives_what_a_run_through_gives(directory):
    through = epoch_of(source(directory, masked_lm_prob=0.15), epoch=1)
    for position in (len(through) - 1, 3, 17):
        fresh = step(source(directory, masked_lm_prob=0.15), position, epoch=1)
        assert all((a == b).all() for a, b in zip(fresh[:3], through[position][:3], strict=True))


def test_epochs_and_seeds_differ_in_order_pairs_and_masks(directory):
    orders = [
        text_rows(epoch_of(source(directory, seed=seed), epoch)) for seed, epoch in [(1, 0), (1, 1), (2, 0), (1, 0)]
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert len({tuple(row) for row in orders[0]} & {tuple(row) for row in orders[1]}) < len(orders[0]) / 2


def test_the_order_leaves_no_trace_of_the_text_beyond_its_window(tmp_path):
    write_corpus(tmp_path, [[[5 + number] * 20] * 5 for number in range(600)])
    rows = text_rows(epoch_of(source(tmp_path, one_seq=True)))
    places = [row[1] for row in rows]
    assert abs(np.corrcoef(range(len(places)), places)[0, 1]) < 0.2  # blocks of 256 tokens are few


def test_shards_make_no_difference_to_which_samples_there_are(tmp_path, documents, directory):
    write_corpus(tmp_path, documents)
    one = source(tmp_path, one_seq=True)
    three = source(directory, one_seq=True)
    spans = [sorted([token for token in row if token > 4] for row in text_rows(epoch_of(x))) for x in (one, three)]
    assert spans[0] == spans[1]


def test_held_out_documents_are_never_trained_on(tmp_path):
    documents = [[[5 + number] * 6] * 8 for number in range(300)]
    write_corpus(tmp_path, documents, documents_per_shard=90)
    train = set(tokens_of(text_rows(epoch_of(source(tmp_path, eval_fraction=0.1)))))
    held_out = set(tokens_of(text_rows(epoch_of(source(tmp_path, split="eval", eval_fraction=0.1)))))
    assert not train & held_out
    assert train | held_out == set(range(5, 305))
    assert 15 <= len(held_out) <= 45


def test_the_eval_split_is_the_same_for_every_epoch_and_seed(directory):
    runs = [
        epoch_of(source(directory, split="eval", eval_fraction=0.2, seed=seed, masked_lm_prob=0.15), epoch)
        for seed, epoch in [(1, 0), (2, 0), (1, 5)]
    ]
    assert text_rows(runs[0]) == text_rows(runs[1]) == text_rows(runs[2])
    lengths = [len(row) for row in text_rows(runs[0])]
    assert lengths[:16] == sorted(lengths[:16])


@pytest.mark.parametrize(("documents", "fraction"), [(2, 0.001), (2, 0.999), (1000, 1e-9), (5, 0.5), (50_000, 0.01)])
def test_at_least_one_document_is_held_out_and_never_all(documents, fraction):
    held_out = is_held_out(np.arange(documents), held_out_threshold(documents, fraction)).sum()
    assert 1 <= held_out < documents
    if documents == 50_000:
        assert abs(held_out - 500) < 112  # 5 sigma


def test_no_document_is_held_out_at_fraction_zero():
    assert not is_held_out(np.arange(1000), held_out_threshold(1000, 0.0)).any()


def test_masking_is_what_the_manifest_says_unless_the_run_says_otherwise(tmp_path, documents):
    write_corpus(tmp_path, documents, sampling=Sampling(masked_lm_prob=0.15))
    masked = text_rows(epoch_of(source(tmp_path, one_seq=True)))
    share = sum(row.count(4) for row in masked) / sum(len(row) for row in masked)
    assert share == pytest.approx(0.15 * 0.8, abs=0.02)
    unmasked = text_rows(epoch_of(source(tmp_path, one_seq=True, masked_lm_prob=0.0)))
    assert tokens_of(unmasked) == all_tokens(documents)
    assert source(tmp_path).sampling.masked_lm_prob == 0.15


def test_whole_words_are_known_from_the_tokenizer_of_the_corpus(tmp_path):
    word = [10, FIRST_CONTINUATION, FIRST_CONTINUATION + 1]
    write_corpus(tmp_path, [[word * 3] * 4 for _ in range(30)])
    reader = source(tmp_path, masked_lm_prob=0.3, whole_word=True, one_seq=True, max_seq_length=21)
    rows = np.array([row for row in text_rows(epoch_of(reader)) if len(row) == 21])
    words = np.concatenate([rows[:, begin : begin + 3] for begin in (1, 4, 7, 11, 14, 17)])
    masks = (words == 4).sum(axis=1)
    # Of a chosen word each piece becomes [MASK] with 0.8: 90 % of the words with one have two; masked singly, 37 %.
    assert (masks >= 2).sum() / (masks >= 1).sum() > 0.75


def test_max_samples_ends_the_epoch_early(directory):
    whole = source(directory)
    reader = source(directory, max_samples=100)
    assert reader.samples_in_epoch(0) == 100
    assert reader.steps_in_epoch(0) == 7
    assert [len(batch.sample_ids) for batch in epoch_of(reader)] == [16] * 6 + [4]
    assert reader.fingerprint != whole.fingerprint
    assert source(directory, max_samples=10**9).samples_in_epoch(0) == whole.samples_in_epoch(0)


def test_padding_reference_pads_every_row_to_the_maximum(directory):
    assert {batch.input_ids.shape[1] for batch in epoch_of(source(directory, padding="reference"))} == {48}
    widths = {batch.input_ids.shape[1] for batch in epoch_of(source(directory))}
    assert len(widths) > 3
    assert all(width % 8 == 0 for width in widths)


def test_several_corpora_are_read_as_one(tmp_path, documents, directory):
    other = [[[900 + i] * 5] * 3 for i in range(50)]
    write_corpus(tmp_path, other)
    rows = text_rows(epoch_of(source([directory, tmp_path], one_seq=True)))
    assert tokens_of(rows) == all_tokens(documents) + all_tokens(other)


def test_corpora_of_different_tokenizers_are_refused(tmp_path, documents, directory):
    write_corpus(tmp_path, documents, tokenizer_fingerprint="another")
    with pytest.raises(DataError, match="different tokenisers"):
        source([directory, tmp_path])


def test_the_fingerprint_names_content_and_sampling(tmp_path, documents, directory):
    write_corpus(tmp_path / "other", documents[:-1])
    base = source(directory).fingerprint
    copied = shutil.copytree(directory, tmp_path / "copy")
    same = [source(copied), source(directory, seed=9), source(directory, global_batch_size=4)]
    different = [
        source(tmp_path / "other"),
        source(directory, max_seq_length=40),
        source(directory, one_seq=True),
        source(directory, eval_fraction=0.1),
        source(directory, masked_lm_prob=0.1),
    ]
    assert {reader.fingerprint for reader in same} == {base}
    assert len({reader.fingerprint for reader in different} | {base}) == len(different) + 1


def test_counts_are_kept_beside_the_corpus_and_counted_anew_when_damaged(tmp_path, documents, monkeypatch):
    write_corpus(tmp_path, documents)
    expected = source(tmp_path).samples_in_epoch(0)
    (kept,) = (tmp_path / "counts").iterdir()
    monkeypatch.setattr(blocks, "_count", lambda *_: pytest.fail("counted again"))
    assert source(tmp_path).samples_in_epoch(0) == expected
    monkeypatch.undo()
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", SMALL_BLOCK)
    for content in (b"", b"no array", kept.read_bytes()[:-8]):
        kept.write_bytes(content)
        assert source(tmp_path).samples_in_epoch(0) == expected


def test_counts_of_which_one_has_changed_are_counted_anew(tmp_path, documents):
    write_corpus(tmp_path, documents)
    expected = source(tmp_path).samples_in_epoch(0)
    (kept,) = (tmp_path / blocks.COUNTS_DIRECTORY).iterdir()
    content = bytearray(kept.read_bytes())
    content[0] ^= 1  # of the first count
    kept.write_bytes(content)
    assert source(tmp_path).samples_in_epoch(0) == expected


def test_counts_differ_between_epochs_only_where_short_documents_are_drawn(tmp_path, documents):
    write_corpus(tmp_path, documents)
    drawn = source(tmp_path, short_seq_prob=0.5)
    assert len({drawn.samples_in_epoch(epoch) for epoch in range(4)}) > 1
    assert len(list((tmp_path / "counts").iterdir())) == 4
    fixed = source(tmp_path, short_seq_prob=0.0)
    assert len({fixed.samples_in_epoch(epoch) for epoch in range(4)}) == 1
    assert len(list((tmp_path / "counts").iterdir())) == 5


def test_a_corpus_that_cannot_be_written_to_is_read_all_the_same(tmp_path, documents):
    write_corpus(tmp_path, documents)
    (tmp_path / "counts").write_text("a file where the directory would be", encoding="utf-8")
    assert source(tmp_path).samples_in_epoch(0) > 0


def test_documents_longer_than_a_block_leave_empty_blocks(tmp_path):
    documents = [[[5 + number] * 10 for _ in range(100)] for number in range(4)]  # 1000 tokens, blocks of 256
    write_corpus(tmp_path, documents)
    assert tokens_of(text_rows(epoch_of(source(tmp_path, one_seq=True)))) == all_tokens(documents)


def test_a_corpus_smaller_than_a_batch_is_one_short_step(tmp_path):
    write_corpus(tmp_path, numbered_documents(2, 2, 3))
    reader = source(tmp_path, global_batch_size=64, short_seq_prob=0.0)
    assert reader.steps_in_epoch(0) == 1
    assert len(step(reader, 0).sample_ids) == 2


@pytest.mark.parametrize(("count", "changes"), [(1, {}), (1, {"eval_fraction": 0.1}), (2, {"eval_fraction": 0.1})])
def test_too_few_documents_for_random_pairs_are_refused_with_the_way_out(tmp_path, count, changes):
    write_corpus(tmp_path, numbered_documents(count, 4, 5))
    with pytest.raises(DataError, match=r"--one_seq and --eval_fraction 0"):
        source(tmp_path, **changes)
    assert source(tmp_path, one_seq=True, eval_fraction=0.0).steps_in_epoch(0) == 1


def test_arguments_out_of_range_are_reported_together(directory):
    with pytest.raises(ConfigError) as raised:
        source(directory, eval_fraction=1.0, max_seq_length=4, masked_lm_prob=1.5, max_samples=0)
    for name in ("eval_fraction", "sequence length", "masked_lm_prob", "max_samples"):
        assert name in str(raised.value)
    with pytest.raises(ConfigError, match="no document is held out"):
        source(directory, split="eval")


def test_a_block_is_large_enough_to_be_read_in_one_go():
    assert BLOCK_TOKENS * 2 >= 1 << 18


def test_windows_are_of_equal_size_and_none_is_small():
    assert corpus.window_steps(samples=16 * 1000, global_batch_size=16) == 8  # 128 samples a window
    assert corpus.window_steps(samples=16 * 9, global_batch_size=16) == 9
    assert corpus.window_steps(samples=16 * 13, global_batch_size=16) == 7
    assert corpus.window_steps(samples=1, global_batch_size=16) == 1
    assert corpus.window_steps(samples=1000 * 9, global_batch_size=1000) == 5  # at least 4 steps a window


def test_padding_is_at_most_three_percent_at_128_and_four_at_512(tmp_path, monkeypatch):
    monkeypatch.undo()  # blocks and windows as they are
    rng = np.random.default_rng(0)
    lengths = [np.maximum(3, rng.gamma(2.2, 13.5, size=rng.integers(40, 300))).astype(int) for _ in range(250)]
    write_corpus(tmp_path, [[[7] * n for n in document] for document in lengths])
    for max_seq_length, most in ((128, 0.03), (512, 0.04)):
        batches = epoch_of(source(tmp_path, global_batch_size=64, max_seq_length=max_seq_length))
        real = sum(int(batch.attention_mask.sum()) for batch in batches)
        assert 1 - real / sum(batch.attention_mask.numel() for batch in batches) < most
