"""Teachers whose attention is not BERT's: from text to the predictions of a BERT student, each command to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.families import family_directory
from tests.support.models import config_directory
from tests.support.runs import read_metrics, run_ranks, write_documents, write_sentiment

STAGES = ("general", "intermediate")
RELATIONS = ("--attention_loss", "relations_kl")
DEBERTA = {
    **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True},
    **{"norm_rel_ebd": "layer_norm", "position_biased_input": False},
}


def student_of(folder: Path, teacher: Path, heads: int) -> Path:
    """Write the config of a BERT that reads what the teacher reads."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    config = json.loads((teacher / "config.json").read_text())
    return config_directory(
        folder,
        num_attention_heads=heads,
        vocab_size=config["vocab_size"],
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=130,
    )


def distil(folder: Path, teacher: Path, length: int, flags: tuple[object, ...]) -> None:
    """Take a teacher through shards, general and intermediate distillation in few steps; check what they leave.

    The teacher has 4 heads; a student that learns relations has 3.
    """
    write_documents(folder / "corpus.txt", documents=60)
    write_sentiment(folder / "task", rows=24)
    shards = ["--train_corpus", folder / "corpus.txt", "--bert_model", teacher, "--output_dir", folder / "shards"]
    run_ranks("prepare_corpus", [*shards, "--max_seq_len", length, "--allow_unknown"], log=folder / "log").check()
    steps = ["--teacher_model", teacher, "--max_steps", 6, "--learning_rate", 3e-3, "--logging_steps", 1]
    words = [
        *steps,
        "--pregenerated_data",
        folder / "shards",
        "--student_model",
        student_of(folder / "config", teacher, heads=3 if flags else 4),
    ]
    words += [*flags, "--train_batch_size", 8, "--eval_fraction", 0.2, "--output_dir", folder / "general"]
    run_ranks("general_distill", words, log=folder / "log").check()

    task = ["--data_dir", folder / "task", "--task_name", "sst-2", "--allow_unknown", "--max_seq_length", length]
    task += ["--teacher_labels", "negative,positive", "--train_batch_size", 8]
    words = [*steps, *task, *flags, "--student_model", folder / "general", "--output_dir", folder / "intermediate"]
    run_ranks("task_distill", words, log=folder / "log").check()
    name = "relation_loss" if RELATIONS[1] in flags else "attention_loss"
    for stage in STAGES:
        losses = [line[name] for line in read_metrics(folder / stage) if "loss" in line]
        assert len(losses) == 6
        assert min(losses) > 0


def predict(folder: Path, teacher: Path, length: int) -> None:
    """Take the intermediate student through the prediction stage and its evaluation."""
    task = ["--data_dir", folder / "task", "--task_name", "sst-2", "--allow_unknown", "--max_seq_length", length]
    words = ["--pred_distill", "--teacher_model", teacher, "--student_model", folder / "intermediate", *task]
    words += ["--teacher_labels", "negative,positive", "--max_steps", 4, "--eval_step", 2, "--train_batch_size", 8]
    run_ranks("task_distill", [*words, "--output_dir", folder / "student"], log=folder / "log").check()
    words = ["--do_eval", "--student_model", folder / "student", *task, "--output_dir", folder / "evaluation"]
    run_ranks("task_distill", words, log=folder / "log").check()
    assert AutoModelForSequenceClassification.from_pretrained(folder / "student").config.model_type == "bert"
    results = [json.loads((folder / place / "eval_results.json").read_text()) for place in ("student", "evaluation")]
    assert results[0] == results[1]


def test_deberta_v3_teaches_a_bert_of_another_number_of_heads(tmp_path):
    teacher = family_directory(tmp_path / "teacher", "deberta-v2", max_position_embeddings=130, **DEBERTA)
    distil(tmp_path, teacher, 64, RELATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "more"),
    [
        ("deberta-v2", {"max_position_embeddings": 130, **DEBERTA}, ("--gradient_checkpointing",)),
        ("mpnet", {"max_position_embeddings": 132}, ("--teacher_engine", "zero3")),
        ("modernbert", {"max_position_embeddings": 130, "num_hidden_layers": 6}, ("--relation_layers", "map")),
    ],
)
def test_every_command_from_text_to_evaluation(tmp_path, family, changes, more):
    teacher = family_directory(tmp_path / "teacher", family, **changes)
    distil(tmp_path, teacher, 128, (*RELATIONS, *more))
    predict(tmp_path, teacher, 128)


@pytest.mark.slow
def test_scores_of_modernbert_are_compared_in_its_layers_with_full_attention(tmp_path):
    sizes = {"max_position_embeddings": 130, "num_hidden_layers": 6, "local_attention": 64}
    teacher = family_directory(tmp_path / "teacher", "modernbert", **sizes)
    distil(tmp_path, teacher, 128, ())
    identities = [json.loads((tmp_path / stage / "run.json").read_text())["identity"] for stage in STAGES]
    assert [identity["layer_map"] for identity in identities] == [[0, 1, 4], [0, 1, 4]]
