"""What the prediction stage learns from a teacher is what transformers says of the same pairs, whatever the student."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from tests.support.families import family_directory
from tests.support.models import VOCABULARY, tiny_config, write_tokenizer
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.stages.task_data import load_task
from tinybert_ds.stages.teacher_logits import logits_teacher
from tinybert_ds.stages.teacher_reading import reading_problems

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


SENTENCES = [["films", "was", "good", "city", "road"] * 3, ["bad"], ["the", "film", "saw", "you"]]
TAGS = "target: tags\nfiles: {train: t.txt, dev: t.txt}\ntext: 0\nlabel: 1\nlabels: [O, X]\nmetric: tag_accuracy\n"
SPANS = "target: spans\nfiles: {train: t, dev: t}\ntext: [question, context]\nlabel: answers\nmetric: answer_f1\n"


def task_of(folder, text):
    (folder / "task.yaml").write_text(text)
    return find_task(None, folder / "task.yaml")


def test_a_teacher_of_tags_that_reads_other_pieces_in_other_rows_answers_for_the_same_words(one_rank_group, tmp_path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    write_tokenizer(teacher)
    model = AutoModelForTokenClassification.from_config(tiny_config(id2label={0: "O", 1: "X"})).eval()
    model.save_pretrained(teacher)
    write_tokenizer(student, vocabulary=[word for word in VOCABULARY if word not in ("film", "good", "road", "the")])
    lines = [[*(f"{word} {'X' if word == 'city' else 'O'}\n" for word in words), "\n"] for words in SENTENCES]
    (tmp_path / "t.txt").write_text("".join(line for part in lines for line in part))
    tokenizer, own = load_tokenizer(student, None), load_tokenizer(teacher, None)
    flags = SimpleNamespace(
        **{"eval_batch_size": 8, "allow_unknown": False, "max_seq_length": 10, "cache_dir": str(tmp_path / "cache")},
        **{"teacher_model": str(teacher), "train_batch_size": 3, "seed": 1, "max_steps": 1, "num_train_epochs": 1.0},
        **{"no_teacher_cache": False, "compile": False, "teacher_engine": "inference", "teacher_dtype": "fp32"},
        **{"teacher_max_seq_length": 32, "data_dir": str(tmp_path)},
    )
    config = tiny_config(vocab_size=len(tokenizer.get_vocab()))
    task = load_task(task_of(tmp_path, TAGS), tmp_path, ("train",), tokenizer, config, flags, ALONE)
    assert len(task.splits["train"]) > len(SENTENCES) + 2  # rows of the student; the teacher has one for each sentence
    look_up = logits_teacher(flags, task, model_fingerprint(teacher), token_types=True, tokenizer=own)
    expected = []
    for words in SENTENCES:
        pieces = [own.tokenize(word) for word in words]
        ids = own.convert_tokens_to_ids(["[CLS]", *(piece for word in pieces for piece in word), "[SEP]"])
        firsts = [1 + sum(map(len, pieces[:at])) for at in range(len(pieces))]
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor([ids])).logits[0, firsts])
    every = task.source("train", 100, seed=0, shuffle=True)
    (batch,) = every.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    found = look_up(batch).logits.split(batch.units.sum(dim=1).tolist())
    in_order = torch.cat([found[at] for at in batch.sample_ids.argsort()])
    torch.testing.assert_close(in_order, torch.cat(expected), rtol=0, atol=1e-5)


def test_what_a_teacher_with_its_own_tokeniser_cannot_answer_is_refused_before_any_work(tmp_path):
    write_tokenizer(tmp_path)
    own, tags, spans = load_tokenizer(tmp_path, None), task_of(tmp_path, TAGS), task_of(tmp_path, SPANS)
    flags = SimpleNamespace(teacher_model="t", no_teacher_cache=True, teacher_engine="zero3")
    assert reading_problems(flags, tags, None, 2) == reading_problems(flags, spans, None, 2) == []
    first, second = reading_problems(flags, tags, own, 2)
    assert first.startswith("--no_teacher_cache asks the teacher about the student's batches")
    assert second.startswith("--teacher_engine zero3 asks")
    assert reading_problems(flags, tags, own, 1) == [first]  # alone it can be asked beforehand
    (said,) = reading_problems(flags, spans, own, 1)
    assert "is answered with tokens of a context, which both must read alike" in said
