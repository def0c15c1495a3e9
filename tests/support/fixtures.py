"""Inputs and reference runs that the tests of whole commands share."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from data_tools import prepare_corpus
from tests.support.models import config_directory, model_directory
from tests.support.runs import read_metrics, run_ranks, write_documents, write_sentiment
from tests.support.sentences import random_texts, sentence_directory, write_sts
from tinybert_ds.data import blocks, corpus
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY

SMALL_BLOCK = 256


@pytest.fixture
def small_blocks_and_windows(monkeypatch):
    """Several blocks and windows in corpora that are made in milliseconds."""
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", SMALL_BLOCK)
    monkeypatch.setattr(corpus, "WINDOW_SAMPLES", 128)
    monkeypatch.setattr(corpus, "WINDOW_STEPS", 4)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Return a folder with a teacher, a student's config, shards and a sentiment task."""
    folder = tmp_path_factory.mktemp("inputs")
    model_directory(folder / "teacher")
    config_directory(folder / "student")
    config_directory(folder / "student_with_dropout", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    write_documents(folder / "corpus.txt", documents=120)
    write_sentiment(folder / "task", rows=60)
    arguments = ["--train_corpus", folder / "corpus.txt", "--bert_model", folder / "teacher"]
    arguments += ["--output_dir", folder / "shards", "--max_seq_len", 64]
    prepare_corpus.main([str(argument) for argument in arguments])
    return folder


@pytest.fixture(scope="session")
def general(inputs):
    """Return the arguments of a general distillation of 40 steps, without the output directory."""
    return [
        *("--pregenerated_data", inputs / "shards", "--teacher_model", inputs / "teacher"),
        *("--student_model", inputs / "student", "--max_seq_length", 64, "--train_batch_size", 12),
        *("--learning_rate", 1e-3, "--logging_steps", 1, "--max_steps", 40, "--eval_fraction", 0.1),
        *("--save_steps", 7, "--teacher_dtype", "fp32", "--init", "random"),
        *("--deepspeed_config", CONFIG_DIRECTORY / "zero0_fp32.json"),  # the default depends on the machine
    ]


def with_student(arguments, *students):
    """Return a command line with other students."""
    words = list(arguments)
    place = words.index("--student_model")
    return [
        *words[:place],
        *(word for student in students for word in ("--student_model", student)),
        *words[place + 2 :],
    ]


@pytest.fixture(scope="session")
def one_rank(general, tmp_path_factory):
    """Return the metrics of one uninterrupted rank, fp32, no ZeRO."""
    folder = tmp_path_factory.mktemp("one_rank")
    arguments = [*general, "--output_dir", folder / "out"]
    run_ranks("general_distill", arguments, log=folder / "log").check()
    return read_metrics(folder / "out")


@pytest.fixture
def one_rank_group():
    """Join a process group of one rank, as a run under plain python does."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def sentence_inputs(inputs, tmp_path_factory):
    """Return a folder with a sentence encoder as teacher, a student's config, texts, scored pairs and shards."""
    folder = tmp_path_factory.mktemp("sentences")
    sentence_directory(folder / "teacher", width=20)
    config_directory(folder / "student")
    (folder / "texts.txt").write_text("\n".join(random_texts(150)) + "\n", encoding="utf-8")
    write_sts(folder / "dev.tsv", pairs=30)
    (folder / "shards").symlink_to(inputs / "shards", target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def embedding(sentence_inputs):
    """Return the arguments of a distillation of vectors of 16 steps, without the output directory."""
    return [
        *("--teacher_model", sentence_inputs / "teacher", "--student_model", sentence_inputs / "student"),
        *("--texts", sentence_inputs / "texts.txt", "--train_batch_size", 12, "--learning_rate", 3e-3),
        *("--logging_steps", 1, "--max_steps", 16, "--save_steps", 5, "--teacher_dtype", "fp32", "--eval_step", 8),
        *(
            "--sts",
            sentence_inputs / "dev.tsv",
            "--deepspeed_config",
            CONFIG_DIRECTORY / "zero0_fp32.json",
            "--init",
            "random",
            "--calibration_tokens",
            600,
        ),
    ]
