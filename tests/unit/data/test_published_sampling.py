"""Our samples beside those of the published rule, written out slowly and independently of the package.

What both have in common must agree in distribution; each deliberate difference is stated by a test.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

from tests.support.corpora import SPECIAL_IDS, write_corpus
from tinybert_ds.data.corpus import CorpusSource

LONGEST = 125  # tokens of text in a sample of 128
SHORT = 0.1
DOCUMENTS = 1200
IDS = SPECIAL_IDS._replace(vocab_size=5 + DOCUMENTS)


class Sample(NamedTuple):
    """Documents and tokens of both segments; no second document: one segment."""

    document: int
    first: int
    second_document: int | None
    second: int
    whole: tuple[int, int] = (0, 0)  # tokens of both before anything was cut

    @property
    def is_random(self) -> bool:
        return self.second_document not in (None, self.document)


def publish(documents: list[list[int]], rng: random.Random) -> list[Sample]:
    """The published samples of documents of sentences of so many tokens, document by document."""
    found = []
    weights = [len(document) for document in documents]
    for number, document in enumerate(documents):
        target = rng.randint(2, LONGEST) if rng.random() < SHORT else LONGEST
        chunk: list[int] = []
        place = 0
        while place < len(document):
            chunk.append(document[place])
            if place == len(document) - 1 or sum(chunk) >= target:
                end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                first, second, other = sum(chunk[:end]), sum(chunk[end:]), number
                if len(chunk) == 1 or rng.random() < 0.5:
                    while other == number:
                        (other,) = rng.choices(range(len(documents)), weights)
                    second = 0
                    for sentence in documents[other][rng.randrange(len(documents[other])) :]:
                        second += sentence
                        if second >= target - first:
                            break
                    place -= len(chunk) - end  # what was not used is put back
                found.append(truncate(Sample(number, first, other, second)))
                chunk = []
            place += 1
    return found


def truncate(sample: Sample) -> Sample:
    """Take tokens from the longer side until the sample fits."""
    first, second = sample.first, sample.second
    while first + second > LONGEST:
        first, second = (first - 1, second) if first > second else (first, second - 1)
    return sample._replace(first=first, second=second, whole=(sample.first, sample.second))


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Documents of sentences with the lengths of prose, a few of them longer than a sample."""
    rng = np.random.default_rng(0)
    return [np.maximum(1, rng.gamma(1.8, 13, size=rng.integers(8, 60))).astype(int).tolist() for _ in range(DOCUMENTS)]


@pytest.fixture(scope="module")
def published(documents) -> list[Sample]:
    return publish(documents, random.Random(0))


@pytest.fixture(scope="module")
def ours(documents, tmp_path_factory) -> list[Sample]:
    """Our samples of the same documents, read off the rows: the tokens of a document are all the same."""
    texts = [[[5 + number] * length for length in document] for number, document in enumerate(documents)]
    directory = write_corpus(tmp_path_factory.mktemp("corpus"), texts, special_ids=IDS)
    source = CorpusSource(
        directory,
        split="train",
        eval_fraction=0.0,
        global_batch_size=64,
        max_seq_length=128,
        seed=3,
        short_seq_prob=SHORT,
    )
    found = []
    for position in range(source.steps_in_epoch(0)):
        (batch,) = source.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
        for ids, mask, types in zip(batch.input_ids, batch.attention_mask, batch.token_type_ids, strict=True):
            length, second = int(mask.sum()), int(types.sum())
            pair = [None, 0] if not second else [int(ids[length - 2]) - 5, second - 1]
            found.append(Sample(int(ids[1]) - 5, length - second - 2, *pair))
    return found


def share(samples: list[Sample]) -> float:
    return float(np.mean([sample.is_random for sample in samples]))


def in_full_documents(samples: list[Sample]) -> np.ndarray:
    """Lengths of the samples of documents that were not drawn to be short."""
    longest: Counter[int] = Counter()
    for sample in samples:
        longest[sample.document] = max(longest[sample.document], sample.first + sample.second)
    return np.array([s.first + s.second for s in samples if longest[s.document] > LONGEST - 10])


def test_half_of_the_pairs_have_a_random_second_segment(documents, published, ours):
    pairs = [sample for sample in ours if sample.second_document is not None]
    assert share(pairs) == pytest.approx(0.5, abs=0.02)
    # The published rule adds one to every chunk of a single sentence, which we leave alone.
    assert 0.52 < share(published) < 0.58
    singles = len(ours) - len(pairs)
    assert 0.02 < singles / len(ours) < 0.2


def test_pairs_are_split_at_the_same_places(published, ours):
    def whole(sample: Sample) -> tuple[int, int]:
        return sample.whole if sum(sample.whole) else (sample.first, sample.second)

    def shares(samples: list[Sample]) -> np.ndarray:
        kept = [whole(s) for s in samples if s.second and not s.is_random and sum(whole(s)) > 80]
        return np.array([first / (first + second) for first, second in kept])

    steps = np.linspace(0.1, 0.9, 9)
    difference = np.quantile(shares(ours), steps) - np.quantile(shares(published), steps)
    assert np.median(shares(ours)) == pytest.approx(0.5, abs=0.04)
    # The published chunk ends with the sentence that crosses the target, which is longer than most, so its B is longer.
    assert (difference > 0).all()
    assert difference.max() < 0.08


def test_the_published_cut_makes_segments_of_equal_length_and_ours_stay_whole(published, ours):
    def equal(samples: list[Sample]) -> float:
        return float(np.mean([abs(s.first - s.second) <= 1 for s in samples if s.first + s.second >= LONGEST - 1]))

    assert equal(published) > 0.15
    assert equal(ours) < 0.05


def test_our_samples_end_before_the_sentence_that_would_be_cut(published, ours):
    mean_ours, mean_published = (in_full_documents(samples).mean() for samples in (ours, published))
    # Half a sentence of 23 tokens is left to the next sample, where the published rule cuts it off; then up to two
    # sentences more where that saves padding.
    assert 15 < mean_published - mean_ours < 25


def test_we_use_every_token_once_and_the_published_rule_cuts_many(documents, published, ours):
    total = sum(map(sum, documents))
    assert 0.985 < sum(sample.first + sample.second for sample in ours) / total <= 1
    assert 0.08 < sum(sum(s.whole) - s.first - s.second for s in published) / total < 0.25


def test_random_second_segments_are_of_the_same_lengths_as_the_others(ours):
    lengths = [[s.second for s in ours if s.second and s.is_random is is_random] for is_random in (True, False)]
    steps = np.linspace(0.1, 0.9, 9)
    assert np.abs(np.quantile(lengths[0], steps) - np.quantile(lengths[1], steps)).max() <= 2
