"""The command that distils sentence vectors, on a tiny teacher with files of texts and with shards."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.models import model_directory
from tests.support.runs import read_metrics, run_ranks
from tests.support.sentences import random_texts, sentence_directory
from tinybert_ds.data.task_batches import TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.models.pretrained import load_encoder
from tinybert_ds.models.sentence.directory import read_modules
from tinybert_ds.models.sentence.modules import Dense, Normalise
from tinybert_ds.stages.sentence_encoders import load_sentence_encoder, read_sentence_directory

pytestmark = pytest.mark.slow  # whole commands


def replaced(arguments, **changes):
    """Return a command line with other values of some flags; None leaves a flag out, a list gives several words."""
    words = list(arguments)
    for name, value in changes.items():
        flag = f"--{name}"
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
        if value is not None:
            words += [flag, *(value if isinstance(value, list) else [value])]
    return words


def run(arguments, folder, name="out"):
    return run_ranks("embed_distill", [*arguments, "--output_dir", folder / name], log=folder / f"{name}.log")


@pytest.fixture(scope="module")
def distilled(embedding, tmp_path_factory):
    """Return the folder of a finished run, and what the command printed."""
    folder = tmp_path_factory.mktemp("distilled")
    return folder / "out", run(replaced(embedding, init="auto"), folder).check().output


def test_the_result_is_a_sentence_encoder_of_the_teachers_width(distilled, sentence_inputs):
    directory, _ = distilled
    assert load_encoder(directory, role="student").config.hidden_size == 24
    modules = read_modules(directory, 24)
    assert modules.pooling == ("mean",)
    assert [type(layer) for layer in modules.layers] == [Dense, Normalise]
    assert modules.width(24) == 20
    assert modules.max_seq_length == read_modules(sentence_inputs / "teacher", 48).max_seq_length == 32


def test_it_is_judged_before_its_first_step_and_learns(distilled):
    directory, output = distilled
    lines = read_metrics(directory)
    assert lines[0].keys() == {"step", "eval_dev_spearman"}
    assert lines[0]["step"] == 0
    losses = [line["l2_loss"] for line in lines if "l2_loss" in line]
    assert len(losses) == 16
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert "of its teacher's before the first step" in output
    assert json.loads((directory / "eval_results.json").read_text()) == {
        "eval_dev_spearman": lines[-1]["eval_dev_spearman"]
    }


def test_the_same_command_once_more_has_nothing_to_do(distilled, embedding):
    directory, _ = distilled
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert "nothing to do" in run(replaced(embedding, init="auto"), directory.parent).check().output
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_vectors_that_are_kept_teach_as_those_that_are_asked_for(embedding, sentence_inputs, tmp_path):
    epochs = replaced(embedding, max_steps=None, num_train_epochs=2, cache_dir=tmp_path / "cache")
    kept = run(epochs, tmp_path, "kept").check().output
    assert "150 answers are computed once" in kept
    asked = run([*epochs, "--no_teacher_cache"], tmp_path, "asked").check().output
    assert "are computed once" not in asked
    losses = [[line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("kept", "asked")]
    assert len(losses[0]) == 26
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)


def test_shards_are_read_as_single_texts(embedding, sentence_inputs, tmp_path):
    arguments = replaced(
        embedding,
        texts=None,
        sts=None,
        pregenerated_data=sentence_inputs / "shards",
        eval_fraction=0.1,
        learning_rate=1e-4,
    )
    run(arguments, tmp_path).check()
    evaluations = [line for line in read_metrics(tmp_path / "out") if "eval_l2_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 8, 16]
    assert evaluations[-1]["eval_l2_loss"] < evaluations[0]["eval_l2_loss"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["identity"]["sampling"]["one_seq"] is True


def test_a_student_goes_on_from_a_sentence_encoder_with_its_projection(embedding, distilled, tmp_path):
    directory, _ = distilled
    output = run(replaced(embedding, student_model=directory, init=None), tmp_path).check().output
    assert "before the first step" not in output  # its projection is not fitted anew
    first = next(line for line in read_metrics(tmp_path / "out"))
    assert first["eval_dev_spearman"] == pytest.approx(read_metrics(directory)[-1]["eval_dev_spearman"], abs=1e-6)


def test_a_teacher_of_another_tokeniser_reads_the_texts_in_its_own_way(embedding, tmp_path):
    words = (
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        "good",
        "bad",
        "film",
    )
    student = model_directory(tmp_path / "student", vocabulary=words, hidden_size=24, num_hidden_layers=2)
    arguments = replaced(embedding, student_model=student, cache_dir=tmp_path / "cache", sts=None, init=None)
    finished = run(arguments, tmp_path).check()
    assert "150 answers are computed once" in finished.output
    losses = [line["loss"] for line in read_metrics(tmp_path / "out") if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4])
    refused = run([*arguments, "--no_teacher_cache"], tmp_path, "refused")
    assert refused.returncode == 2
    assert "tokenisers of --student_model and --teacher_model" in refused.output


def test_a_prompt_of_the_teacher_stands_before_each_text_of_both_models(embedding, tmp_path):
    teacher = sentence_directory(tmp_path / "teacher", prompts={"query": "we saw : "}, default_prompt="query")
    arguments = replaced(embedding, teacher_model=teacher, cache_dir=tmp_path / "cache")
    run(arguments, tmp_path).check()
    modules = read_modules(tmp_path / "out", 24)
    assert (dict(modules.prompts), modules.default_prompt) == ({"query": "we saw : "}, "query")
    identity = json.loads((tmp_path / "out" / "run.json").read_text())["identity"]
    assert identity["prompt"] == "we saw : "
    refused = run([*arguments, "--prompt_name", "document"], tmp_path, "refused")
    assert refused.returncode == 2
    assert "has no such prompt; it has query, none" in refused.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_seq_length": 40}, "cuts texts to 32 tokens"),
        ({"init": "teacher", "layer_map": "0,1"}, "layer map"),
        ({"eval_fraction": 1e-9}, "leaves none for eval_loss"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(embedding, tmp_path, changes, said):
    finished = run(replaced(embedding, cache_dir=tmp_path / "cache", **changes), tmp_path)
    assert finished.returncode == 2
    assert said in finished.output
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_directory_of_other_vectors_is_not_written_over(distilled, embedding):
    directory, _ = distilled
    finished = run([*replaced(embedding, init="auto"), "--cosine_weight", 1], directory.parent)
    assert finished.returncode == 2
    assert "cosine_weight" in finished.output


def test_a_column_of_vectors_teaches_as_the_teacher_that_it_was_written_by(embedding, sentence_inputs, tmp_path):
    texts = random_texts(40)
    teacher = read_sentence_directory(str(sentence_inputs / "teacher"), None, role="teacher")
    encoder = load_sentence_encoder(teacher, 32, role="teacher")
    rows = encode(Examples(tmp_path, (texts,), None), teacher.tokenizer, 32)
    whole = TaskSource(rows, global_batch_size=40, max_seq_length=32, seed=0, padding="valid", pad_id=0, shuffle=False)
    (batch,) = whole.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    with torch.no_grad():
        vectors = encoder(batch).logits[batch.sample_ids.argsort()].tolist()
    lines = [json.dumps({"text": text, "vector": vector}) for text, vector in zip(texts, vectors, strict=True)]
    (tmp_path / "taught.jsonl").write_text("\n".join(lines) + "\n")
    student = model_directory(tmp_path / "student", hidden_size=24, num_hidden_layers=2)
    common = replaced(
        embedding,
        texts=tmp_path / "taught.jsonl",
        student_model=student,
        eval_fraction=0.2,
        relation_weight=1,
        sts=None,
        init=None,
    )
    run([*common, "--no_teacher_cache"], tmp_path, "live").check()
    column = replaced(common, teacher_model=None, vector_column="vector", max_seq_length=32)
    run(column, tmp_path, "column").check()
    live, taught = (
        [line for line in read_metrics(tmp_path / name) if "loss" in line or "eval_loss" in line]
        for name in ("live", "column")
    )
    for name in ("loss", "l2_loss", "relation_loss", "eval_loss"):
        expected = [line[name] for line in live if name in line]
        assert [line[name] for line in taught if name in line] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    modules = [read_modules(tmp_path / name, 24) for name in ("live", "column")]
    assert [each.normalised for each in modules] == [True, True]
    torch.testing.assert_close(modules[0].layers[0].weight, modules[1].layers[0].weight, rtol=1e-3, atol=1e-4)


def test_a_column_needs_a_student_with_a_tokeniser(embedding, tmp_path):
    (tmp_path / "taught.jsonl").write_text('{"text": "good", "vector": [1, 2]}\n')
    finished = run(
        replaced(embedding, teacher_model=None, vector_column="vector", texts=tmp_path / "taught.jsonl"), tmp_path
    )
    assert finished.returncode == 2
    assert "has no tokeniser" in finished.output
