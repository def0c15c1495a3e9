"""Tasks whose rows are answered with other things than one label or score, from their files to predictions."""

from __future__ import annotations

import json
import random
import signal
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.support.models import model_directory, tiny_config, write_tokenizer
from tests.support.runs import exit_codes, read_metrics, run_ranks, start_ranks
from tests.support.sabotage import die_writing_checkpoint

NEUTRAL = "the a story plot actor was is not very long short dull music we saw".split()
STUDENT = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with a teacher and a student without heads."""
    folder = tmp_path_factory.mktemp("models")
    model_directory(folder / "teacher")
    model_directory(folder / "student", seed=3, scale=1.0, **STUDENT)
    return folder


def learning(folder, out, *, steps=40):
    words = ["--data_dir", folder, "--task_file", folder / "task.yaml", "--learning_rate", 3e-3, "--logging_steps", 1]
    return [*words, "--train_batch_size", 16, "--max_steps", steps, "--eval_step", 20, "--output_dir", folder / out]


def run(stage, words, folder, *, ranks=1):
    return run_ranks(stage, words, world_size=ranks, log=folder / "log").check().output


def distil(folder, models, *flags, student, out, ranks=1, steps=20):
    words = [*flags, "--teacher_model", folder / "teacher", "--student_model", student, "--teacher_dtype", "fp32"]
    run("task_distill", [*words, *learning(folder, out, steps=steps)], folder, ranks=ranks)


def predict(folder, out, *, ranks=1):
    words = ["--do_eval", "--student_model", folder / "student", "--data_dir", folder, "--predict_split", "dev"]
    words += ["--task_file", folder / "task.yaml", "--output_dir", folder / out]
    run("task_distill", words, folder, ranks=ranks)
    return json.loads((folder / out / "eval_results.json").read_text())


def write_words(folder):
    """Write sentences in which cities and rivers, of two words where the second is road, are entities."""
    rng = random.Random(0)
    for name, count in (("train", 96), ("dev", 32)):
        lines = []
        for _ in range(count):
            for word in rng.choices([*NEUTRAL, "city", "river"], k=rng.randint(2, 30)):
                lines.append(f"{word}\tn\t{'B-PLACE' if word in ('city', 'river') else 'O'}\n")
                if word == "river" and rng.random() < 0.5:
                    lines.append("road\tn\tI-PLACE\n")
            lines.append("\n")
        (folder / f"{name}.conll").write_text("".join(lines))
    (folder / "task.yaml").write_text(
        "target: tags\nfiles: {train: train.conll, dev: dev.conll}\ntext: 0\nlabel: -1\nscheme: BIO\nlabels: [PLACE]\n"
        "metric: entity_f1\nmax_seq_length: 24\n"
    )


def distilled_by_any_number_of_ranks(models, folder, *, steps):
    """Distil a student in both stages; return its metrics, which two ranks predict as the last evaluation had them."""
    distil(folder, models, student=models / "student", out="intermediate")
    start = folder / "intermediate"
    distil(folder, models, "--pred_distill", student=start, out="student", steps=steps)
    distil(folder, models, "--pred_distill", student=start, out="on_two", ranks=2, steps=steps)
    one, two = (
        [line["loss"] for line in read_metrics(folder / out) if "loss" in line] for out in ("student", "on_two")
    )
    assert two == pytest.approx(one, rel=2e-3)
    results = predict(folder, "evaluation", ranks=2)
    assert results == json.loads((folder / "student" / "eval_results.json").read_text())
    return results


def test_tags_are_learned_in_all_stages_and_written_in_the_format_of_their_files(models, tmp_path):
    write_words(tmp_path)
    run("finetune", ["--model", models / "teacher", *learning(tmp_path, "teacher", steps=60)], tmp_path)
    assert json.loads((tmp_path / "teacher" / "eval_results.json").read_text())["eval_entity_f1"] > 0.9
    assert type(AutoModelForTokenClassification.from_pretrained(tmp_path / "teacher")).__name__ == (
        "BertForTokenClassification"
    )
    results = distilled_by_any_number_of_ranks(models, tmp_path, steps=60)
    assert results["eval_entity_f1"] > 0.5
    gold = (tmp_path / "dev.conll").read_text().splitlines()
    found = (tmp_path / "evaluation" / "predictions_dev.conll").read_text().splitlines()
    assert [line.rpartition("\t")[0] for line in found] == [line.rpartition("\t")[0] for line in gold]
    assert len({line.rpartition("\t")[2] for line in found if line}) == 3
    refused = run_ranks("augment_task", augmenting(models, tmp_path), log=tmp_path / "log")
    assert refused.returncode == 2
    assert "tags belong to the words as they were" in refused.output


def augmenting(models, folder):
    words = ["--pretrained_bert_model", models / "teacher", "--no_glove", "--data_dir", folder]
    return [*words, "--task_file", folder / "task.yaml"]


def write_labels(folder):
    """Write texts with any of three labels, each for a word."""
    rng = random.Random(0)
    for name, count in (("train", 96), ("dev", 48)):
        rows = []
        for _ in range(count):
            words, labels = rng.choices(NEUTRAL, k=rng.randint(2, 12)), []
            for label, word in (("praise", "good"), ("blame", "bad"), ("place", "city")):
                if rng.random() < 0.4:
                    words.insert(rng.randint(0, len(words)), word)
                    labels.append(label)
            rows.append(json.dumps({"text": " ".join(words), "labels": labels}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(rows))
    (folder / "task.yaml").write_text(
        "target: multi_label\nfiles: {train: train.jsonl, dev: dev.jsonl}\ntext: text\nlabel: labels\n"
        "labels: [praise, blame, place]\nmetric: [micro_f1, macro_f1]\n"
    )


def test_several_labels_are_learned_and_predicted_with_the_thresholds_of_the_evaluation_split(models, tmp_path):
    write_labels(tmp_path)
    run("finetune", ["--model", models / "teacher", *learning(tmp_path, "teacher", steps=60)], tmp_path)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher").config
    assert config.problem_type == "multi_label_classification"
    distil(tmp_path, models, "--pred_distill", student=models / "student", out="student", steps=60)
    results = predict(tmp_path, "evaluation", ranks=2)
    thresholds = json.loads((tmp_path / "student" / "config.json").read_text())["thresholds"]
    assert len(thresholds) == 3
    names = ["praise", "blame", "place"]
    gold = [json.loads(line)["labels"] for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    lines = (tmp_path / "evaluation" / "predictions_dev.tsv").read_text().splitlines()[1:]
    found = [line.partition("\t")[2].split("|") for line in lines]
    truth, predicted = (np.array([[name in row for name in names] for row in rows]) for rows in (gold, found))
    assert results["eval_micro_f1"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert results["eval_score"] == pytest.approx((results["eval_micro_f1"] + results["eval_macro_f1"]) / 2)
    assert results["eval_micro_f1"] > 0.6


def write_questions(folder):
    """Write questions after cities, nested as SQuAD 2.0 is: some contexts have none, and most are longer than a row."""
    rng = random.Random(0)
    for name, count in (("train", 96), ("dev", 32)):
        paragraphs = []
        for number in range(count):
            words = rng.choices(NEUTRAL, k=rng.randint(6, 30))
            if number % 4:
                words.insert(rng.randint(0, len(words)), "city")
            context = " ".join(words)
            answers = [{"text": "city", "answer_start": context.index("city")}] if "city" in words else []
            question = {
                "id": f"{name}-{number}",
                "question": "we saw",
                "answers": answers,
                "is_impossible": not answers,
            }
            paragraphs.append({"context": context, "qas": [question]})
        data = [{"title": "t", "paragraphs": paragraphs[at::2]} for at in range(2)]
        (folder / f"{name}.json").write_text(json.dumps({"version": "v2.0", "data": data}))
    (folder / "task.yaml").write_text(
        "target: spans\nfiles: {train: train.json, dev: dev.json}\ntext: [question, context]\nlabel: answers\n"
        "metric: [exact_match, answer_f1]\nmax_seq_length: 24\n"
    )


def test_spans_are_learned_in_all_stages_and_written_as_the_official_scripts_read_them(models, tmp_path):
    write_questions(tmp_path)
    run("finetune", ["--model", models / "teacher", *learning(tmp_path, "teacher", steps=60)], tmp_path)
    assert json.loads((tmp_path / "teacher" / "eval_results.json").read_text())["eval_exact_match"] > 0.8
    results = distilled_by_any_number_of_ranks(models, tmp_path, steps=40)
    assert len(json.loads((tmp_path / "student" / "config.json").read_text())["thresholds"]) == 2
    articles = json.loads((tmp_path / "dev.json").read_text())["data"]
    asked = [entry for article in articles for paragraph in article["paragraphs"] for entry in paragraph["qas"]]
    found = json.loads((tmp_path / "evaluation" / "predictions_dev.json").read_text())
    assert list(found) == [entry["id"] for entry in asked]
    right = [found[entry["id"]] == ("city" if entry["answers"] else "") for entry in asked]
    assert results["eval_exact_match"] == pytest.approx(np.mean(right))
    assert results["eval_score"] == pytest.approx((results["eval_exact_match"] + results["eval_answer_f1"]) / 2)
    assert results["eval_exact_match"] > 0.5


def test_a_killed_prediction_stage_of_spans_goes_on_bit_for_bit(models, tmp_path):
    write_questions(tmp_path)
    write_tokenizer(tmp_path / "teacher")
    config = tiny_config(id2label={0: "start", 1: "end"})
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(tmp_path / "teacher")
    words = ["--pred_distill", "--teacher_model", tmp_path / "teacher", "--student_model", models / "student"]
    words += ["--save_steps", 4, "--num_train_epochs", 1]
    whole, killed = ([*words, *learning(tmp_path, out, steps=12)] for out in ("whole", "killed"))
    run("task_distill", whole, tmp_path)
    sabotage = {0: partial(die_writing_checkpoint, "step-00000008")}
    assert exit_codes(start_ranks("task_distill", killed, 1, tmp_path / "log", sabotage)) == [-signal.SIGKILL]
    assert "falling back to step-00000004" in run("task_distill", killed, tmp_path)
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_search_tries_learning_rates_and_seeds_by_the_metrics_of_the_target(models, tmp_path):
    write_questions(tmp_path)
    flags = ["--search", "--search_learning_rates", 3e-3, 1e-9, "--search_seeds", 1, 2, "--train_batch_size", 16]
    words = ["--model", models / "teacher", "--data_dir", tmp_path, "--task_file", tmp_path / "task.yaml", *flags]
    run("finetune", [*words, "--max_steps", 20, "--output_dir", tmp_path / "out"], tmp_path)
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert (found["score"], found["taken"]["learning_rate"]) == ("eval_score", 3e-3)
    chosen = json.loads((tmp_path / "out" / "lr0.003-seed{seed}".format(**found["taken"]) / "run.json").read_text())
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_score"] == chosen["finished"]["results"]["eval_score"]
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(kept["thresholds"]) == 2
