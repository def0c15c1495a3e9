"""Teachers of other languages: from text to evaluated students, each command to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_tools import trim_vocabulary
from tests.support.families import family_directory
from tests.support.models import config_directory
from tests.support.runs import read_metrics, run_ranks, write_documents, write_sentiment

STEPS = ("--max_steps", 4, "--learning_rate", 1e-3, "--logging_steps", 1, "--train_batch_size", 8)


def run(folder: Path, stage: str, *words: object) -> str:
    return run_ranks(stage, words, log=folder / "log").check().output


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(directory) if "loss" in line]


@pytest.mark.slow
def test_a_trimmed_vocabulary_of_xlm_r_goes_with_its_untrimmed_teacher_through_all_stages(tmp_path):
    teacher = family_directory(tmp_path / "teacher", "xlm-roberta")
    write_documents(tmp_path / "corpus.txt", documents=60)
    write_sentiment(tmp_path / "task", rows=24)
    part = tmp_path / "vocabulary"
    words = ["--model", teacher, "--corpus", tmp_path / "corpus.txt", "--keep", 90, "--output_dir", part]
    trim_vocabulary.main([str(word) for word in [*words, "--allow_unknown"]])
    tokenizer = AutoTokenizer.from_pretrained(part)
    assert len(tokenizer) < len(AutoTokenizer.from_pretrained(teacher))

    shards = ("--train_corpus", tmp_path / "corpus.txt", "--bert_model", part, "--output_dir", tmp_path / "shards")
    run(tmp_path, "prepare_corpus", *shards, "--max_seq_len", 60, "--allow_unknown")
    student = config_directory(tmp_path / "config", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    general = ("--teacher_model", teacher, "--student_tokenizer", part, "--pregenerated_data", tmp_path / "shards")
    general += ("--student_model", student, "--eval_fraction", 0.2, "--output_dir", tmp_path / "general")
    run(tmp_path, "general_distill", *general, *STEPS)
    task = ("--data_dir", tmp_path / "task", "--task_name", "sst-2", "--allow_unknown", "--max_seq_length", 60)
    both = (*task, "--teacher_model", teacher, "--teacher_labels", "negative,positive", *STEPS)
    layers = ("--student_model", tmp_path / "general", "--output_dir", tmp_path / "intermediate")
    run(tmp_path, "task_distill", *both, *layers)
    predictions = ("--student_model", tmp_path / "intermediate", "--output_dir", tmp_path / "student")
    told = run(tmp_path, "task_distill", "--pred_distill", *both, *predictions)
    assert "the teacher reads the rows by its own tokeniser" in told
    judged = ("--student_model", tmp_path / "student", "--output_dir", tmp_path / "evaluation")
    run(tmp_path, "task_distill", "--do_eval", *task, *judged)
    for stage in ("general", "intermediate", "student"):
        assert len(losses(tmp_path / stage)) == 4
    results = [json.loads((tmp_path / place / "eval_results.json").read_text()) for place in ("student", "evaluation")]
    assert results[0] == results[1]
