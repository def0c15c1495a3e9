"""What the prediction stage learns from a teacher is what transformers says of the same pairs, whatever the student."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.families import family_directory
from tests.support.models import tiny_config
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.stages.task_data import load_task
from tinybert_ds.stages.teacher_logits import logits_teacher

ALONE = World(0, 1, 0, torch.device("cpu"))
PAIRS = [("the film was good", "it was not dull"), ("a bad plot", "the city"), ("we liked it", "she hated the actor")]
LABELS = ["good", "bad", "good"]
SPEC = "files: {train: train.tsv, dev: train.tsv}\ntext: [a, b]\nlabel: label\nlabels: [bad, good]\nmetric: accuracy\n"


@pytest.fixture
def task_file(tmp_path):
    rows = ["a\tb\tlabel", *(f"{one}\t{other}\t{label}" for (one, other), label in zip(PAIRS, LABELS, strict=True))]
    (tmp_path / "train.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "task.yaml").write_text(SPEC)
    return tmp_path / "task.yaml"


def kept_logits(task_file, teacher, student, **changes):
    """Return the logits of all pairs that the prediction stage keeps of a teacher, for a student of a family."""
    tokenizer = load_tokenizer(teacher, None)
    arguments = {"eval_batch_size": 8, "allow_unknown": False, "max_seq_length": 32}
    arguments |= {"cache_dir": str(task_file.parent / "cache"), "teacher_model": str(teacher), "train_batch_size": 3}
    arguments |= {"seed": 1, "max_steps": None, "num_train_epochs": 1.0, "no_teacher_cache": False, "compile": False}
    arguments |= {"teacher_engine": "inference", "teacher_dtype": "fp32", **changes}
    flags = SimpleNamespace(**arguments)
    config = tiny_config(student, vocab_size=max(tokenizer.get_vocab().values()) + 1)
    task = load_task(find_task(None, task_file), task_file.parent, ("train",), tokenizer, config, flags, ALONE)
    look_up = logits_teacher(flags, task, model_fingerprint(teacher), token_types=returns_token_types(tokenizer))
    (batch,) = task.source("train", 3, seed=0, shuffle=False).micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    return look_up(batch).logits[batch.sample_ids.argsort()]


@pytest.mark.parametrize("no_teacher_cache", [False, True])
@pytest.mark.parametrize("student", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("family", ["bert", "albert", "multilingual minilm"])
def test_the_teachers_logits_of_pairs_are_those_of_transformers(
    one_rank_group, task_file, family, student, no_teacher_cache
):
    teacher = family_directory(task_file.parent / "teacher", family)
    firsts, seconds = (list(texts) for texts in zip(*PAIRS, strict=True))
    inputs = AutoTokenizer.from_pretrained(teacher)(firsts, seconds, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(teacher).eval()(**inputs).logits
    found = kept_logits(task_file, teacher, student, no_teacher_cache=no_teacher_cache)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
