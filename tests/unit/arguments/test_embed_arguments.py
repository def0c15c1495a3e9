"""What goes together in the command lines for sentence vectors."""

from __future__ import annotations

import pytest

from tinybert_ds.arguments.embed import EmbedDistillArguments, EmbedEvaluateArguments
from tinybert_ds.arguments.parsing import parse_arguments

TAUGHT = ["--teacher_model", "t", "--student_model", "s", "--output_dir", "o"]
BY_COLUMN = ["--student_model", "s", "--output_dir", "o", "--texts", "a.jsonl", "--vector_column", "v"]
JUDGED = ["--model", "m", "--output_dir", "o"]


def problems(kind, *words):
    return " ".join(parse_arguments(kind, words)[1])


@pytest.mark.parametrize(
    "words", [[*TAUGHT, "--texts", "a.txt"], [*TAUGHT, "--pregenerated_data", "shards"], BY_COLUMN]
)
def test_each_source_of_texts_and_of_vectors_is_enough(words):
    assert problems(EmbedDistillArguments, *words) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (TAUGHT, "either --texts with files, or --pregenerated_data"),
        ([*TAUGHT, "--texts", "a", "--pregenerated_data", "b"], "either --texts with files, or --pregenerated_data"),
        (
            ["--student_model", "s", "--output_dir", "o", "--texts", "a"],
            "either --teacher_model DIR, or --vector_column",
        ),
        ([*BY_COLUMN, "--teacher_model", "t"], "either --teacher_model DIR, or --vector_column"),
        ([*TAUGHT, "--texts", "a", "--l2_weight", "0"], "nothing is learned"),
        (
            [*TAUGHT, "--texts", "a", "--relation_weight", "1", "--gradient_accumulation_steps", "2"],
            "cuts in parts; lower --train_batch_size",
        ),
        ([*TAUGHT, "--texts", "a", "--short_seq_prob", "0.1"], "--short_seq_prob is for --pregenerated_data"),
        ([*TAUGHT, "--pregenerated_data", "b", "--prompt_name", "query"], "--prompt_name is for --texts"),
        ([*BY_COLUMN, "--text_column", "a", "b"], "holds the vector of one text"),
        ([*BY_COLUMN, "--init", "teacher"], "a column has no weights"),
        ([*BY_COLUMN, "--prompt_name", "query"], "write it into the texts"),
        ([*TAUGHT, "--texts", "a", "--sts", "b", "--sts_columns", "one", "other"], "give three"),
    ],
)
def test_what_contradicts_itself_is_told(words, said):
    assert said in problems(EmbedDistillArguments, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [(JUDGED, "nothing to judge"), ([*JUDGED, "--sts", "a", "--document_model", "t"], "is for --retrieval")],
)
def test_an_evaluation_needs_something_to_judge(words, said):
    assert said in problems(EmbedEvaluateArguments, *words)
    assert problems(EmbedEvaluateArguments, *JUDGED, "--retrieval", "b", "--document_model", "t") == ""
