from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.errors import ConfigError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "##a", "##b"]
PAD, UNK, CLS, SEP, A, B, C, D, E = range(9)


def tokenizer(roberta_like: bool = False) -> PreTrainedTokenizerFast:
    engine = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    second = 0 if roberta_like else 1
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=engine, **names)


def examples(*texts: list[str], labels=None) -> Examples:
    return Examples(Path("train.tsv"), texts, labels)


def rows_of(encoded: EncodedExamples) -> list[list[int]]:
    return [row.tolist() for row in np.split(encoded.tokens, encoded.offsets[1:-1])]


def random_encoded(n: int, longest: int, labelled: bool = True) -> EncodedExamples:
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, longest + 1, n)
    return EncodedExamples(
        tokens=generator.integers(4, 100, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        segment_a_lengths=(lengths // 2).astype(np.int32),
        labels=generator.integers(0, 2, n) if labelled else None,
    )


def source(encoded: EncodedExamples, **changes) -> TaskSource:
    options = {"global_batch_size": 4, "max_seq_length": 40, "seed": 1, "padding": "valid", "pad_id": 0}
    return TaskSource(encoded, **{**options, **changes})


def epoch_ids(batches: TaskSource, epoch: int, world_size: int = 1, accumulation: int = 1) -> list[list[int]]:
    """Sample ids of every step, in the order of its parts, filler rows left out."""
    steps = []
    for position in range(batches.steps_in_epoch(epoch)):
        shares = [
            batches.micro_batches(epoch, position, rank=rank, world_size=world_size, accumulation=accumulation)
            for rank in range(world_size)
        ]
        parts = [share[micro_step] for micro_step in range(accumulation) for share in shares]
        steps.append([i for part in parts for i in part.sample_ids.tolist() if i >= 0])
    return steps


def test_a_sentence_becomes_its_tokens_between_the_special_ones():
    encoded = encode(examples(["a b", "E", ""], labels=np.array([1, 0, 1])), tokenizer(), 8)
    assert rows_of(encoded) == [[CLS, A, B, SEP], [CLS, E, SEP], [CLS, SEP]]
    assert encoded.lengths.tolist() == [4, 3, 2]
    assert encoded.segment_a_lengths.tolist() == [4, 3, 2]
    assert encoded.labels.tolist() == [1, 0, 1]
    assert encoded.tokens.dtype == np.int32


def test_the_longer_text_of_a_pair_is_cut_first():
    encoded = encode(examples(["a b c d", "a"], ["e", "b c d e a"]), tokenizer(), 7)
    assert rows_of(encoded) == [[CLS, A, B, C, SEP, E, SEP], [CLS, A, SEP, B, C, D, SEP]]
    assert encoded.segment_a_lengths.tolist() == [5, 3]


@pytest.mark.parametrize("length", [5, 6, 9, 12])
def test_cutting_equals_that_of_hugging_face(length):
    generator = np.random.default_rng(3)
    firsts, seconds = (
        [" ".join(generator.choice(WORDS[4:9], generator.integers(1, 12))) for _ in range(50)] for _ in range(2)
    )
    tokens = tokenizer()
    expected = tokens(firsts, seconds, truncation=True, max_length=length, return_token_type_ids=True)
    encoded = encode(examples(firsts, seconds), tokenizer(), length)
    assert rows_of(encoded) == expected["input_ids"]
    assert encoded.segment_a_lengths.tolist() == [types.count(0) for types in expected["token_type_ids"]]


def test_a_tokeniser_without_second_segment_gives_rows_of_one_segment():
    encoded = encode(examples(["a"], ["b c"]), tokenizer(roberta_like=True), 8)
    assert encoded.segment_a_lengths.tolist() == encoded.lengths.tolist() == [6]


def test_the_callers_tokeniser_keeps_its_settings():
    tokens = tokenizer()
    tokens.backend_tokenizer.enable_truncation(max_length=3)
    tokens.backend_tokenizer.enable_padding(length=20)
    assert encode(examples(["a b c d e"]), tokens, 8).lengths.tolist() == [7]
    assert tokens.backend_tokenizer.truncation["max_length"] == 3
    assert tokens.backend_tokenizer.padding["length"] == 20


def test_a_length_without_room_for_text_is_refused():
    with pytest.raises(ConfigError, match=r"max_seq_length is 4, but 3 special tokens .* need 5"):
        encode(examples(["a"], ["b"]), tokenizer(), 4)


def test_the_fingerprint_follows_the_content():
    def fingerprint(texts=("a", "b"), labels=(0, 1), length=8):
        return encode(examples(list(texts), labels=np.array(labels)), tokenizer(), length).fingerprint

    assert fingerprint() == fingerprint()
    others = {
        fingerprint(texts=("a", "c")),
        fingerprint(texts=("b", "a")),
        fingerprint(labels=(0, 0)),
        fingerprint(labels=(0.0, 1.0)),
        fingerprint(texts=("a b", "")),
        fingerprint(),
    }
    assert len(others) == 6
    assert fingerprint(texts=("a b c d e a b c", "b")) != fingerprint(texts=("a b c d e a b c", "b"), length=10)


def test_every_row_comes_once_in_an_epoch_and_in_another_order_in_the_next():
    batches: BatchSource = source(random_encoded(22, 40))
    assert (batches.samples_in_epoch(0), batches.steps_in_epoch(0)) == (22, 6)
    first, second = epoch_ids(batches, 0), epoch_ids(batches, 1)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(22))
    assert [len(step) for step in first] == [batches.samples_in_step(0, step) for step in range(6)] == [4] * 5 + [2]
    assert first != second
    assert first == epoch_ids(source(random_encoded(22, 40)), 0)
    assert first != epoch_ids(source(random_encoded(22, 40), seed=2), 0)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_steps_hold_the_same_rows_for_any_number_of_ranks(world_size, accumulation, shuffle):
    encoded = random_encoded(21, 40)
    assert epoch_ids(source(encoded, shuffle=shuffle), 3) == epoch_ids(
        source(encoded, shuffle=shuffle), 3, world_size, accumulation
    )


def test_evaluation_takes_every_row_once_in_order_of_length_in_every_epoch():
    encoded = random_encoded(11, 40)
    steps = epoch_ids(source(encoded, shuffle=False), 0, world_size=2)
    flat = list(chain(*steps))
    assert sorted(flat) == list(range(11))
    assert encoded.lengths[flat].tolist() == sorted(encoded.lengths.tolist())
    assert steps == epoch_ids(source(encoded, shuffle=False, seed=9), 7, world_size=2)


def test_batches_hold_the_rows_that_their_sample_ids_name():
    encoded = random_encoded(9, 37)
    batches = source(encoded)
    for position in range(batches.steps_in_epoch(0)):
        (batch,) = batches.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
        assert batch.input_ids.shape[1] <= 40
        for index, row in enumerate(batch.sample_ids.tolist()):
            length, first = int(encoded.lengths[row]), int(encoded.segment_a_lengths[row])
            width = batch.input_ids.shape[1]
            tokens = encoded.tokens[encoded.offsets[row] : encoded.offsets[row + 1]]
            assert batch.input_ids[index].tolist() == tokens.tolist() + [0] * (width - length)
            assert batch.attention_mask[index].tolist() == [1] * length + [0] * (width - length)
            assert batch.token_type_ids[index].tolist() == [0] * first + [1] * (length - first) + [0] * (width - length)
            assert batch.labels[index] == encoded.labels[row]
        assert batch.labels.dtype == torch.int64


def test_reference_padding_pads_to_the_full_length_and_scores_are_float32():
    encoded = random_encoded(3, 10)
    encoded = EncodedExamples(encoded.tokens, encoded.offsets, encoded.segment_a_lengths, np.float32([0.5, 1, 2]))
    (batch,) = source(encoded, padding="reference").micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    assert batch.input_ids.shape == (3, 40)
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[0.5, 1.0, 2.0][row] for row in batch.sample_ids.tolist()]


def test_unlabelled_rows_have_no_labels():
    batches = source(random_encoded(3, 10, labelled=False))
    (batch,) = batches.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    assert batch.labels is None
