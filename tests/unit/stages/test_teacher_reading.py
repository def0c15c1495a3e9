"""A teacher with a tokeniser of its own says of each row what it would say of its text by itself."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_tools import label_rows
from tests.support.families import family_directory
from tests.support.language_models import LANGUAGE_MODELS, language_model_directory
from tests.support.models import VOCABULARY, model_directory, tiny_config, write_tokenizer
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.teacher import build_teacher
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_classifier, read_config
from tinybert_ds.stages.evaluate import load_fine_tuned
from tinybert_ds.stages.task_data import RowFlags, load_task
from tinybert_ds.stages.teacher_logits import logits_teacher
from tinybert_ds.stages.teacher_reading import own_tokenizer

ALONE = World(0, 1, 0, torch.device("cpu"))
TEXTS = ["the film was good", "a bad plot we saw and hated", "long", "the music was not very dull", "bright story"]
SECONDS = ["it was not dull", "the city", "she hated the actor", "two days", "a short road"]
LABELS = ["good", "bad", "good", "bad", "good"]


@pytest.fixture
def folder(tmp_path):
    rows = zip(TEXTS, SECONDS, LABELS, strict=True)
    (tmp_path / "train.tsv").write_text("\n".join(["a\tb\tlabel", *("\t".join(row) for row in rows)]) + "\n")
    write_tokenizer(tmp_path / "student")
    return tmp_path


def logits_of(folder, teacher, text="a", **changes):
    """Return what the prediction stage learns of all rows, in their order, for a student of another vocabulary."""
    (folder / "task.yaml").write_text(
        f"files: {{train: train.tsv, dev: train.tsv}}\ntext: {text}\nlabel: label\nlabels: [bad, good]\n"
        "metric: accuracy\n"
    )
    given = {"eval_batch_size": 8, "allow_unknown": True, "max_seq_length": 64, "cache_dir": str(folder / "cache")}
    given |= {"teacher_model": str(teacher), "data_dir": str(folder), "train_batch_size": 3, "seed": 1}
    given |= {"max_steps": None, "num_train_epochs": 1.0, "no_teacher_cache": False, "compile": False}
    given |= {"teacher_engine": "inference", "teacher_dtype": "fp32", "teacher_max_seq_length": None, **changes}
    flags = SimpleNamespace(**given)
    student = load_tokenizer(folder / "student", None)
    own = own_tokenizer(student, str(teacher), None)
    assert own is not None
    task = load_task(find_task(None, folder / "task.yaml"), folder, ("train",), student, tiny_config(), flags, ALONE)
    types = returns_token_types(own)
    teach = logits_teacher(flags, task, model_fingerprint(teacher), token_types=types, tokenizer=own)
    source = task.source("train", 3, seed=3, shuffle=True)
    steps = range(source.steps_in_epoch(0))
    batches = [b for step in steps for b in source.micro_batches(0, step, rank=0, world_size=1, accumulation=1)]
    found = torch.cat([teach(batch).logits for batch in batches])
    return found[torch.cat([batch.sample_ids for batch in batches]).argsort()]


def one_by_one(teacher, *texts, dtype=torch.float32, **how):
    """Return the logits that transformers gives for each row alone, without any padding."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForSequenceClassification.from_pretrained(teacher, dtype=dtype).eval()
    with torch.no_grad():
        rows = zip(*texts, strict=True)
        return torch.cat([model(**tokenizer(*row, return_tensors="pt", **how)).logits for row in rows]).float()


@pytest.mark.parametrize("no_teacher_cache", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("name", list(LANGUAGE_MODELS))
def test_a_language_model_teaches_what_it_says_of_each_row_alone(one_rank_group, folder, name, pairs, no_teacher_cache):
    teacher = language_model_directory(folder / "teacher", name)
    expected = one_by_one(teacher, *((TEXTS, SECONDS) if pairs else (TEXTS,)))
    found = logits_of(folder, teacher, "[a, b]" if pairs else "a", no_teacher_cache=no_teacher_cache)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["xlm-roberta", "albert", "mpnet"])
def test_an_encoder_of_another_vocabulary_teaches_what_it_says_of_each_pair(one_rank_group, folder, family):
    teacher = family_directory(folder / "teacher", family)
    expected = one_by_one(teacher, TEXTS, SECONDS)
    torch.testing.assert_close(logits_of(folder, teacher, "[a, b]"), expected, rtol=0, atol=1e-5)


def test_in_half_precision_positions_stay_exact(one_rank_group, folder):
    teacher = language_model_directory(folder / "teacher", "llama", scale=2.0)
    (folder / "train.tsv").write_text("a\tlabel\n" + f"{' '.join(TEXTS * 3)}\tgood\n" * 2 + "the film\tbad\n")
    long = " ".join(TEXTS * 3)
    expected = one_by_one(teacher, [long], dtype=torch.bfloat16)[0]
    found = logits_of(folder, teacher, max_seq_length=128, teacher_dtype="bf16")
    exact = one_by_one(teacher, [long])[0]
    assert (expected - exact).abs().max() < 0.1
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0.02)


def test_rotary_frequencies_are_not_rounded_to_half_precision(one_rank_group, folder):
    directory = language_model_directory(folder / "teacher", "qwen3")
    model = load_classifier(directory, label_names=("bad", "good"), role="teacher", head="required")
    encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True)
    exact = encoder.get_buffer("model.model.rotary_emb.inv_freq").clone()
    build_teacher(encoder, torch.bfloat16)
    assert torch.equal(encoder.get_buffer("model.model.rotary_emb.inv_freq"), exact)
    assert next(encoder.parameters()).dtype is torch.bfloat16


def test_rows_are_cut_at_the_teachers_own_length(one_rank_group, folder):
    teacher = language_model_directory(folder / "teacher", "qwen3")
    found = logits_of(folder, teacher, teacher_max_seq_length=3)
    expected = one_by_one(teacher, TEXTS, truncation=True, max_length=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_empty_text_is_a_row_of_one_filler(one_rank_group, folder):
    teacher = language_model_directory(folder / "teacher", "qwen3")
    (folder / "train.tsv").write_text("a\tlabel\nthe film\tgood\n\tbad\n")
    found = logits_of(folder, teacher)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[:1], one_by_one(teacher, ["the film"]), rtol=0, atol=1e-5)


def test_a_forced_casing_of_the_student_is_not_forced_on_a_teacher_that_states_its_own(tmp_path):
    student = load_tokenizer(model_directory(tmp_path / "student", vocabulary=[*VOCABULARY, "more"]), True)
    cased = language_model_directory(tmp_path / "teacher", "qwen3")
    own = own_tokenizer(student, str(cased), True)
    assert own is not None
    assert own.encode("The") != own.encode("the")
    assert own_tokenizer(student, str(tmp_path / "student"), True) is None


@pytest.mark.parametrize("name", list(LANGUAGE_MODELS))
def test_a_language_model_labels_rows_with_what_it_says_of_each_alone_and_is_judged_by_that(
    one_rank_group, folder, name
):
    teacher = language_model_directory(folder / "teacher", name)
    keys = "text: [a, b]\nlabel: label\nlabels: [bad, good]\nmetric: accuracy\n"
    (folder / "task.yaml").write_text(f"files: {{train: train.tsv, dev: train.tsv}}\n{keys}")
    words = ["--model", teacher, "--task_file", folder / "task.yaml", "--data_dir", folder, "--dtype", "fp32"]
    label_rows.main([str(word) for word in [*words, "--output", folder / "said.jsonl", "--max_seq_length", 64]])
    said = [json.loads(line)["teacher"] for line in (folder / "said.jsonl").read_text().splitlines()]
    expected = one_by_one(teacher, TEXTS, SECONDS)
    torch.testing.assert_close(torch.tensor(said), expected, rtol=0, atol=1e-5)

    spec, flags = find_task(None, folder / "task.yaml"), RowFlags(64)
    tokenizer, config = load_tokenizer(teacher, None), read_config(teacher, role="model")
    task = load_task(spec, folder, ("dev",), tokenizer, config, flags, ALONE, judged=True)
    found = task.predict(load_fine_tuned(teacher, task).module, "dev")
    assert found.tolist() == expected.argmax(dim=1).tolist()
    with pytest.raises(ModelError, match="cls_token"):  # it is not trained here
        load_task(spec, folder, ("dev",), tokenizer, config, flags, ALONE)
