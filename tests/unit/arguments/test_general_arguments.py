"""What general distillation is told about its corpora."""

from __future__ import annotations

import pytest

from tinybert_ds.arguments import GeneralDistillArguments, parse_arguments

MODELS = ["--teacher_model", "teacher", "--student_model", "4L_312", "--output_dir", "out"]


def parse(*words: str) -> tuple[GeneralDistillArguments, list[str]]:
    given = [] if "--pregenerated_data" in words else ["--pregenerated_data", "shards"]
    return parse_arguments(GeneralDistillArguments, [*given, *words, *MODELS], "general_distill.py")


@pytest.mark.parametrize(
    ("words", "corpora"),
    [
        (["a"], [("a", None)]),
        (["a", "b/c"], [("a", None), ("b/c", None)]),
        (["a=0.7", "/b=2"], [("a", 0.7), ("/b", 2.0)]),
        (["lr=fast", "x=y=1e-1"], [("lr=fast", None), ("x=y", 0.1)]),
    ],
)
def test_corpora_are_directories_with_or_without_weights(words, corpora):
    assert parse("--pregenerated_data", *words)[0].corpora == corpora


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=0.7", "b"], "for all or none"),
        (["a=0.7", "a=0.3"], "names a more than once"),
        (["a", "b", "a"], "names a more than once"),
    ],
)
def test_weights_for_some_and_directories_given_twice_are_refused(words, message):
    (problem,) = parse("--pregenerated_data", *words)[1]
    assert message in problem


def test_without_phases_there_is_one_of_max_seq_length():
    assert parse()[0].phase_list == [(128, 1.0)]
    arguments, problems = parse("--max_seq_length", "64", "--train_batch_size", "10", "--max_train_samples", "7")
    assert problems == []
    assert arguments.phase_list == [(64, 1.0)]
    assert (arguments.phase_batch_size(64), arguments.phase_max_samples(64)) == (10, 7)


def test_phases_have_as_many_tokens_in_a_batch_and_an_epoch():
    arguments, problems = parse(
        "--phases", "128:0.9,512:0.1", "--train_batch_size", "256", "--max_train_samples", "1001"
    )
    assert problems == []
    assert arguments.phase_list == [(128, 0.9), (512, 0.1)]
    assert [arguments.phase_batch_size(length) for length in (128, 512)] == [256, 64]
    assert [arguments.phase_max_samples(length) for length in (128, 512)] == [1001, 251]


@pytest.mark.parametrize("phases", ["", "128", "128:0.5,512:0.4", "128:1.1,512:-0.1", "a:1", "128:nan", "128:1:1"])
def test_phases_that_are_no_shares_are_refused(phases):
    (problem,) = parse("--phases", phases)[1]
    assert "LENGTH:SHARE" in problem


def test_batches_that_are_no_whole_number_of_longer_samples_are_refused_with_one_that_is():
    (problem,) = parse("--phases", "128:0.9,384:0.1", "--train_batch_size", "100")[1]
    assert "33 samples of 384 tokens and 128 tokens left over" in problem
    assert "multiple of 3" in problem
    assert parse("--phases", "128:0.9,384:0.1", "--train_batch_size", "99")[1] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phases", "4:1"], "--phases is 4; it must be at least 8"),
        (["--max_seq_length", "4"], "--max_seq_length is 4; it must be at least 8"),
        (["--phases", "128:1", "--max_seq_length", "64"], "--max_seq_length 64 is none of the lengths of --phases"),
        (["--max_train_samples", "0"], "--max_train_samples is 0"),
        (["--full_sentences", "--one_seq"], "--full_sentences and --one_seq contradict"),
        (["--full_sentences", "--short_seq_prob", "0.1"], "it has no --short_seq_prob"),
        (["--word_list", "words.txt"], "--word_list says which characters are masked together"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(words, message):
    (problem,) = parse(*words)[1]
    assert message in problem
