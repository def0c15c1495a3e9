from __future__ import annotations

import numpy as np
import pytest
import xxhash

from tinybert_ds.data.masking import Masking, mask_tokens, take_words

VOCABULARY = 100
MASK, CLS, SEP = 4, 2, 3
SPECIAL = np.arange(VOCABULARY) < 5
CONTINUATION = np.arange(VOCABULARY) >= 80


def masking(probability: float = 0.15, max_predictions: int = 20, whole_word: bool = False) -> Masking:
    return Masking(
        probability, max_predictions, MASK, SPECIAL, np.arange(5, VOCABULARY), CONTINUATION if whole_word else None
    )


def rows(n: int, length: int, low: int = 5, high: int = VOCABULARY, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n rows [CLS] tokens [SEP], flat, and their lengths."""
    tokens = np.random.default_rng(seed).integers(low, high, size=(n, length))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens.reshape(-1), np.full(n, length)


def test_probability_zero_changes_nothing_at_all():
    tokens, lengths = rows(500, 3)
    assert mask_tokens(1, np.arange(500), tokens, lengths, masking(0.0)) is tokens


@pytest.mark.parametrize(
    ("length", "probability", "most", "expected"),
    [(100, 0.15, 20, 15), (100, 0.15, 8, 8), (128, 0.15, 20, 19), (3, 0.15, 20, 0), (10, 0.15, 20, 2), (6, 0.9, 20, 4)],
)
def test_the_number_of_chosen_tokens_is_the_rounded_share_of_the_length(length, probability, most, expected):
    tokens, lengths = rows(400, length)
    masked = mask_tokens(1, np.arange(400), tokens, lengths, masking(probability, most))
    changed = (masked != tokens).reshape(400, length).sum(axis=1)
    assert changed.max() <= expected
    assert changed.sum() == pytest.approx(400 * expected * (0.8 + 0.1 * 94 / 95), rel=0.1)  # the others stay as drawn


def test_special_tokens_are_never_chosen():
    tokens, lengths = rows(300, 20)
    masked = mask_tokens(1, np.arange(300), tokens, lengths, masking(0.9, 100)).reshape(300, 20)
    assert (masked[:, 0] == CLS).all()
    assert (masked[:, -1] == SEP).all()


def test_eighty_percent_become_mask_ten_random_ten_stay():
    tokens, lengths = rows(1000, 102, low=50, high=51)  # one word only: a random token is seen as one
    masked = mask_tokens(1, np.arange(1000), tokens, lengths, masking(0.5, 100)).reshape(1000, 102)[:, 1:-1]
    chosen = 1000 * 51
    assert (masked == MASK).sum() / chosen == pytest.approx(0.8, abs=0.01)
    others = masked[(masked != MASK) & (masked != 50)]
    assert len(others) / chosen == pytest.approx(0.1 * 94 / 95, abs=0.007)
    assert set(others.tolist()) == set(range(5, 100)) - {50}


def test_every_place_is_equally_likely():
    tokens, lengths = rows(6000, 12)
    masked = mask_tokens(1, np.arange(6000), tokens, lengths, masking(0.25)).reshape(6000, 12)
    share = (masked == MASK).mean(axis=0)[1:-1]
    assert np.abs(share - 3 / 10 * 0.8).max() < 0.03  # 5 sigma


def test_a_row_is_masked_alike_in_any_company():
    tokens, lengths = rows(10, 40)
    together = mask_tokens(1, np.arange(10), tokens, lengths, masking()).reshape(10, 40)
    alone = mask_tokens(1, np.array([7]), tokens[280:320], lengths[:1], masking())
    assert alone.tolist() == together[7].tolist()
    longer = np.concatenate([np.full(90, 60), tokens[280:320]])
    beside = mask_tokens(1, np.array([3, 7]), longer, np.array([90, 40]), masking())
    assert beside[90:].tolist() == together[7].tolist()


def test_masks_differ_between_keys_and_between_samples():
    tokens, lengths = rows(1, 100)
    drawn = [
        mask_tokens(key, np.array([sample]), tokens, lengths, masking()).tolist()
        for key, sample in [(1, 0), (2, 0), (1, 1)]
    ]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize(("whole_word", "expected"), [(False, "9f5a350c9cc4b0dc"), (True, "e1e77a51db161299")])
def test_masks_stay_the_same_from_version_to_version(whole_word, expected):
    """A run that goes on with another version must read what it would have read."""
    tokens, lengths = rows(50, 60, seed=5)
    masked = mask_tokens(1, np.arange(50), tokens, lengths, masking(whole_word=whole_word))
    assert xxhash.xxh3_64_hexdigest(masked.astype("<i8").tobytes()) == expected


def word_of(tokens: np.ndarray) -> np.ndarray:
    """Word numbers of the tokens between [CLS] and [SEP]."""
    return np.cumsum([i == 0 or not CONTINUATION[token] for i, token in enumerate(tokens)])


def test_whole_words_are_masked_as_one_and_within_the_budget():
    tokens, lengths = rows(500, 42, seed=3)
    masked = mask_tokens(1, np.arange(500), tokens, lengths, masking(0.15, 20, whole_word=True))
    whole = 0
    for old, new in zip(tokens.reshape(500, 42)[:, 1:-1], masked.reshape(500, 42)[:, 1:-1], strict=True):
        words = word_of(old)
        touched = set(words[new != old].tolist())
        size = sum(int((words == word).sum()) for word in touched)
        assert size <= 6  # rint(42 * 0.15)
        whole += sum(int((words == word).sum()) > 1 and bool((new[words == word] == MASK).all()) for word in touched)
    assert whole > 100


def test_words_that_do_not_fit_are_left_out_and_smaller_ones_taken_instead():
    # One word of three pieces, two of one piece, budget 2: never a part of the long one.
    tokens = np.array([CLS, 10, 80, 81, 11, 12, SEP] * 200)
    masked = mask_tokens(1, np.arange(200), tokens, np.full(200, 7), masking(0.3, 2, whole_word=True)).reshape(200, 7)
    assert (masked[:, 1:4] == [10, 80, 81]).all()
    assert (masked[:, 4:6] == MASK).sum() == pytest.approx(200 * 2 * 0.8, rel=0.1)


def test_words_are_taken_from_left_to_right_as_long_as_they_fit():
    rng = np.random.default_rng(0)
    sizes = np.sort(rng.integers(0, 5, size=(300, 9)) > 0, axis=1)[:, ::-1] * rng.integers(1, 6, size=(300, 9))
    budget = rng.integers(0, 14, size=300)
    taken = take_words(sizes, budget)
    for row, left, found in zip(sizes.tolist(), budget.tolist(), taken.tolist(), strict=True):
        for size, mine in zip(row, found, strict=True):
            assert mine == (0 < size <= left)
            left -= size * mine  # noqa: PLW2901


def test_a_piece_cut_off_from_its_word_is_a_word_of_its_own():
    tokens = np.array([CLS, 80, SEP, 81, SEP] * 100)
    masked = mask_tokens(1, np.arange(100), tokens, np.full(100, 5), masking(0.2, 20, whole_word=True)).reshape(100, 5)
    changed = (masked != [CLS, 80, SEP, 81, SEP]).sum(axis=1)
    assert changed.max() == 1
    assert {int(place) for place in np.nonzero(masked == MASK)[1]} == {1, 3}
