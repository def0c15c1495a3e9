"""From the flags of general distillation to what it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.corpora import VOCABULARY, random_documents, write_corpus
from tinybert_ds.arguments import GeneralDistillArguments
from tinybert_ds.data.manifest import Sampling
from tinybert_ds.data.verification import Progress
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.stages import corpora


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(corpora, "run_on_main", lambda world, action: action())
    monkeypatch.setattr(corpora, "gather_objects", lambda value: [value])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), random_documents(300))


def open_with(directory, *, world_size=1, vocab_size=VOCABULARY, tokenizer="a tokeniser", **flags):
    directories = directory if isinstance(directory, list) else [str(directory)]
    given = {"max_seq_length": 64, "eval_fraction": 0.1, "train_batch_size": 8, "max_steps": 10, **flags}
    arguments = GeneralDistillArguments(
        output_dir="out", pregenerated_data=directories, teacher_model="teacher", student_model=["student"], **given
    )
    assert arguments.problems() == []
    return corpora.open_corpora(arguments, vocab_size, tokenizer, World(0, world_size, 0, torch.device("cpu")))


def read(opened, epoch, position):
    (batch,) = opened.train.micro_batches(epoch, position, rank=0, world_size=1, accumulation=1)
    return batch


def test_token_ids_beyond_the_teachers_vocabulary_are_refused(directory):
    with pytest.raises(ConfigError, match=rf"ids up to {VOCABULARY - 1}, but --teacher_model teacher has .* 999 tok"):
        open_with(directory, vocab_size=VOCABULARY - 1)
    open_with(directory, vocab_size=VOCABULARY + 24)


def test_shards_of_another_tokeniser_are_refused_before_samples_are_counted(tmp_path):
    write_corpus(tmp_path, random_documents(30))
    with pytest.raises(ConfigError, match="another tokeniser than that of --teacher_model teacher"):
        open_with(tmp_path, tokenizer="another")
    assert not (tmp_path / "counts").exists()


def test_phases_share_the_steps_and_keep_the_tokens_of_a_batch(directory):
    opened = open_with(directory, max_seq_length=None, phases="32:0.6,64:0.4", max_steps=20)
    assert opened.total_steps == 20
    assert opened.longest == 64
    place, rows = (0, 0), []
    for _ in range(20):
        if place[1] == opened.train.steps_in_epoch(place[0]):
            place = (place[0] + 1, 0)
        batch = read(opened, *place)
        rows.append((len(batch.sample_ids), batch.input_ids.shape[1] <= 32))
        place = (place[0], place[1] + 1)
    assert rows[:12] == [(8, True)] * 12
    assert [count for count, _ in rows[12:]] == [4] * 8
    assert not all(short for _, short in rows[12:])


def test_epochs_of_a_run_with_phases_are_counted_at_the_first_length(directory):
    plain = open_with(directory, max_seq_length=32, max_steps=None, num_train_epochs=2.0)
    phased = open_with(directory, max_seq_length=None, phases="32:0.5,64:0.5", max_steps=None, num_train_epochs=2.0)
    assert phased.total_steps == plain.total_steps > 100


def test_a_phase_whose_batch_the_ranks_cannot_share_is_refused(directory):
    flags = {"max_seq_length": None, "phases": "32:0.5,64:0.5"}
    with pytest.raises(ConfigError, match=r"phase of 64 tokens has 4 samples a step, which 8 ranks x 1"):
        open_with(directory, world_size=8, **flags)
    open_with(directory, world_size=4, **flags)


def test_weights_are_those_of_training_and_all_held_out_documents_are_evaluated(tmp_path):
    for name, token, count in (("a", 10, 100), ("b", 20, 300)):
        write_corpus(tmp_path / name, [[[token] * 9] * 4 for _ in range(count)])
    opened = open_with([f"{tmp_path / 'a'}=0.5", f"{tmp_path / 'b'}=0.5"], max_seq_length=32)
    steps = opened.train.steps_in_epoch(0)
    tokens = np.concatenate([read(opened, 0, position).input_ids[:, 1].numpy() for position in range(steps)])
    assert abs(np.mean(tokens == 10) - 0.5) < 0.01
    held_out = opened.held_out
    found = [
        batch.input_ids[:, 1]
        for position in range(held_out.steps_in_epoch(0))
        for batch in held_out.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
    ]
    assert (torch.cat(found) == 20).sum() > 1.5 * (torch.cat(found) == 10).sum()


def test_everything_that_changes_the_samples_makes_another_run(directory, tmp_path):
    other = write_corpus(tmp_path, random_documents(30, seed=3))
    runs = [
        {},
        {"max_seq_length": 32},
        {"max_seq_length": None, "phases": "32:0.9,64:0.1"},
        {"max_seq_length": None, "phases": "32:0.8,64:0.2"},
        {"max_train_samples": 50},
        {"full_sentences": True},
        {"one_seq": True},
        {"masked_lm_prob": 0.1},
        {"masked_lm_prob": 0.1, "do_whole_word_mask": True},
        {"short_seq_prob": 0.5},
        {"eval_fraction": 0.2},
        {"directory": [str(other)]},
        {"directory": [str(directory), str(other)]},
        {"directory": [f"{directory}=1", f"{other}=1"]},
        {"directory": [f"{directory}=2", f"{other}=1"]},
    ]
    identities = [open_with(**{"directory": directory, **flags}).identity for flags in runs]
    for number, identity in enumerate(identities):
        assert identity not in identities[:number], runs[number]


@pytest.mark.parametrize("flags", [{"verify_data": True}, {"max_steps": 30}, {"eval_batch_size": 2}])
def test_what_changes_no_sample_makes_the_same_run(directory, flags):
    assert open_with(directory, **flags).identity == open_with(directory).identity


def test_damage_is_found_by_one_rank_of_each_host(tmp_path):
    write_corpus(tmp_path, random_documents(30))
    content = bytearray((tmp_path / "shard-00000.bin").read_bytes())
    content[100] ^= 4
    (tmp_path / "shard-00000.bin").write_bytes(content)
    open_with(tmp_path).finish_verification(print)
    opened = open_with(tmp_path, verify_data=True)
    with pytest.raises(DataError, match=r"shard-00000\.bin' is damaged"):
        opened.finish_verification(print)
    with pytest.raises(DataError, match=r"shard-00000\.bin' is damaged"):
        read(opened, 0, 0)


def test_samples_are_as_long_as_the_corpus_was_made_for_unless_a_flag_says_otherwise(tmp_path):
    corpus = write_corpus(tmp_path, random_documents(60), sampling=Sampling(max_seq_len=32))
    opened = open_with(corpus, max_seq_length=None)
    assert opened.longest == 32
    assert opened.identity == open_with(corpus, max_seq_length=32).identity
    assert 16 < max(read(opened, 0, step).input_ids.shape[1] for step in range(opened.train.steps_in_epoch(0))) <= 32
    assert open_with(corpus, max_seq_length=64).longest == 64
    assert open_with(corpus, max_seq_length=None, phases="16:0.5,64:0.5").longest == 64


def test_corpora_made_for_different_lengths_and_for_useless_ones_are_refused_until_the_run_says_which(tmp_path):
    for name, length in (("a", 32), ("b", 64), ("c", 5)):
        write_corpus(tmp_path / name, random_documents(30), sampling=Sampling(max_seq_len=length))
    a, b, c = (str(tmp_path / name) for name in "abc")
    with pytest.raises(ConfigError, match=r"32 tokens in .*a, 64 tokens in .*b\. Give --max_seq_length"):
        open_with([a, b], max_seq_length=None)
    with pytest.raises(ConfigError, match="--max_seq_length is 5; it must be at least 8"):
        open_with(c, max_seq_length=None)
    assert open_with([a, b], max_seq_length=16).longest == 16


class Checks:
    """A verification that has read so many bytes at each look."""

    total_bytes = 100

    def __init__(self, *looks: int) -> None:
        self._looks = iter(looks)

    def progress(self, *, within: float) -> Progress:
        """Return the next look."""
        hashed = next(self._looks)
        return Progress(hashed, self.total_bytes, hashed == self.total_bytes, None)


def test_waiting_for_the_checks_gives_a_sign_of_life_whenever_they_have_moved(directory):
    opened = replace(open_with(directory), verification=Checks(20, 20, 60, 100))
    told: list[str] = []
    opened.finish_verification(told.append)
    assert told == [f"--verify_data has read {read} of 100 bytes" for read in (20, 60)]


def test_damage_that_another_host_has_found_ends_this_rank_too(directory, monkeypatch):
    monkeypatch.setattr(corpora, "gather_objects", lambda own: [own, Progress(5, 9, True, "a file is damaged")])
    with pytest.raises(DataError, match="a file is damaged"):
        open_with(directory).finish_verification(print)


def test_corpora_made_for_different_sampling_are_refused_until_the_run_says_which(tmp_path):
    write_corpus(tmp_path / "a", random_documents(30))
    write_corpus(tmp_path / "b", random_documents(30), sampling=Sampling(masked_lm_prob=0.15, max_seq_len=512))
    both = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(ConfigError, match=r"masked_lm_prob is 0\.0 in the manifest of .*a' and 0\.15 in that of .*b'"):
        open_with(both)
    assert open_with(both, masked_lm_prob=0.1).identity["sampling"]["masked_lm_prob"] == 0.1
