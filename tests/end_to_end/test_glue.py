"""Every task of GLUE from the files that the benchmark distributes to the submission that its server takes."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.glue_files import GLUE_FILES, NAMES, SPLITS, write_glue
from tests.support.models import model_directory
from tests.support.runs import run_ranks
from tinybert_ds.data.glue import GLUE_TASKS
from tinybert_ds.data.tasks import TASKS

FINE_TUNED = ("cola", "mnli")
"""Tasks whose models are fine-tuned here; those of the others are random, with the labels in another order."""

SUBMISSION = {
    **{name: {task.test_files[0]: f"{task.folder}.tsv"} for name, task in GLUE_FILES.items()},
    "mnli": {"test_matched.tsv": "MNLI-m.tsv", "test_mismatched.tsv": "MNLI-mm.tsv"},
}


@pytest.fixture(scope="module")
def glue(inputs, tmp_path_factory):
    """Return a folder with GLUE's files and a model for each task, and what is in the files."""
    folder = tmp_path_factory.mktemp("glue")
    files = write_glue(folder / "glue")
    for name in GLUE_FILES:
        if name in FINE_TUNED:
            words = ["--model", inputs / "teacher", "--data_dir", folder / "glue" / GLUE_FILES[name].folder]
            words += ["--task_name", name, "--train_batch_size", 4, "--max_steps", 3, "--max_seq_length", 64]
            run_ranks("finetune", [*words, "--output_dir", folder / "models" / name], log=folder / "log").check()
        else:
            labels = TASKS[name].label_names[::-1] or ("score",)
            directory = model_directory(folder / "models" / name, labels=labels, seed=5)
            centre(directory, files[name, GLUE_FILES[name].test_files[0]].texts)
    return folder, files


@pytest.fixture(scope="module")
def evaluated(glue, tmp_path_factory):
    """Evaluate all tasks on two ranks and predict their test files; return the output directory."""
    folder, _ = glue
    out = tmp_path_factory.mktemp("evaluated")
    words = ["--model", f"student={folder}/models/{{task}}", "--task_name", "all", "--glue_dir", folder / "glue"]
    words += ["--output_dir", out / "results", "--submission", "--max_seq_length", 64]
    run_ranks("evaluate_glue", words, world_size=2, log=out / "log").check()
    return out / "results"


def logits_of(model, directory, texts):
    """Run each row by itself through plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = [tokenizer(*row, return_tensors="pt", truncation=True, max_length=64) for row in texts]
    with torch.no_grad():
        return torch.cat([model(**row).logits for row in rows])


def centre(directory, texts):
    """Shift a random model's outputs so that its predictions for the texts differ."""
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        model.classifier.bias -= logits_of(model, directory, texts).mean(dim=0)
    model.save_pretrained(directory)


def predictions_of(directory, texts):
    """Predict each row: the words of the model's own labels, or scores."""
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    logits = logits_of(model, directory, texts)
    if len(model.config.id2label) == 1:
        return [float(row[0]) for row in logits]
    return [model.config.id2label[int(row.argmax())] for row in logits]


@pytest.mark.parametrize("name", GLUE_FILES)
def test_a_task_goes_from_its_files_to_its_files_of_the_submission(glue, evaluated, name):
    folder, files = glue
    with zipfile.ZipFile(evaluated / "student-submission.zip") as archive:
        for test_file, submitted in SUBMISSION[name].items():
            header, *lines = archive.read(submitted).decode().splitlines()
            assert header == "index\tprediction"
            index, words = zip(*(line.split("\t") for line in lines), strict=True)
            assert list(index) == [str(number) for number in range(SPLITS["test"])]
            expected = predictions_of(folder / "models" / name, files[name, test_file].texts)
            if name == "sts-b":
                clipped = [min(max(score, 0.0), 5.0) for score in expected]
                assert [float(word) for word in words] == pytest.approx(clipped, abs=6e-4)
            else:
                found = [NAMES[name][int(word)] if name in NAMES else word for word in words]
                assert found == expected
                assert name in FINE_TUNED or len(set(found)) > 1


def test_the_table_has_every_task_and_the_submission_every_file_of_the_benchmark(glue, evaluated):
    folder, files = glue
    content = json.loads((evaluated / "glue_results.json").read_text())
    assert list(content["tasks"]) == [spec.name for spec in GLUE_TASKS if spec.name != "mnli-mm"]
    assert content["submissions"]["student"]["missing"] == []
    mismatched = content["tasks"]["mnli"]["dev_mismatched"]
    expected = files["mnli", "dev_mismatched.tsv"]
    found = predictions_of(folder / "models" / "mnli", expected.texts)
    hits = sum(word == label for word, label in zip(found, expected.labels, strict=True))
    assert mismatched == {"rows": 6, "metrics": {"student": {"accuracy": hits / 6}}, "published": {}}
    assert "| mnli | dev_mismatched | 6 | accuracy |" in (evaluated / "glue_results.md").read_text()


def test_a_model_that_is_missing_is_named_before_any_is_judged(glue, tmp_path):
    folder, _ = glue
    words = ["--model", f"{tmp_path}/{{task}}", "--task_name", "rte,wnli", "--glue_dir", folder / "glue"]
    finished = run_ranks("evaluate_glue", [*words, "--output_dir", tmp_path / "out"], log=tmp_path / "log")
    assert finished.returncode == 2
    assert f"task rte: no model in {tmp_path}/rte or {tmp_path}/RTE" in finished.output
    assert not (tmp_path / "out").exists()
