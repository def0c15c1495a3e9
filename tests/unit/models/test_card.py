import json
import math
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.stats import pearsonr, spearmanr

from tests.support.run_records import write_run
from tinybert_ds.models.card import CARD_FILE, Card, Figure, figures_table, read_base_model, render_card, write_card
from tinybert_ds.models.run_card import run_card, standard_error

FIGURE = Figure("accuracy", 0.75, "sst-2", "dev", 100, 0.0433)


def test_what_the_hub_reads_comes_back_from_its_own_classes():
    card = Card(
        "student", "text-classification", license="mit", language=["en"], datasets=["nyu-mll/glue"], figures=[FIGURE]
    )
    data = ModelCard(render_card(card)).data
    assert (data.license, data.language, data.datasets) == ("mit", ["en"], ["nyu-mll/glue"])
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name, result.dataset_split) == (
        *("accuracy", 0.75, "sst-2", "dev"),
    )
    index = data.to_dict()["model-index"]
    assert index[0]["name"] == "student"
    assert "license" not in ModelCard(render_card(Card("x", "feature-extraction"))).data.to_dict()


def test_odd_names_stay_in_their_places():
    name = 'a: "b" | #c\n---\nd'
    text = render_card(Card(name, "text-classification", figures=[replace(FIGURE, task=name)]))
    data = ModelCard(text).data
    assert (data.model_name, data.eval_results[0].dataset_name) == (name, name)
    assert '\n# a: "b" \\| #c --- d\n' in text
    assert '| a: "b" \\| #c --- d | dev |' in figures_table([replace(FIGURE, task=name)])


def test_a_card_of_our_own_is_written_anew_and_one_that_somebody_edited_is_not(tmp_path):
    write_card(tmp_path, Card("a", "text-classification"))
    write_card(tmp_path, Card("b", "text-classification"))
    assert "# b\n" in (tmp_path / CARD_FILE).read_text()
    (tmp_path / CARD_FILE).write_text("# mine\n")
    write_card(tmp_path, Card("c", "text-classification"))
    assert (tmp_path / CARD_FILE).read_text() == "# mine\n"


def test_the_base_model_is_what_the_card_of_the_directory_says(tmp_path):
    assert read_base_model(tmp_path) == ()
    (tmp_path / CARD_FILE).write_text("---\nbase_model: a/b\n---\n")
    assert read_base_model(tmp_path) == ("a/b",)
    (tmp_path / CARD_FILE).write_text("---\nbase_model: [\n---\n")
    assert read_base_model(tmp_path) == ()


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("bert-base-uncased", ("bert-base-uncased",)),
        ("[a/b, /house/mine/plain, c, 7, {d: e}]", ("a/b", "c")),
        ("/house/mine/plain", ()),
        ("/plain", ()),
        ("../plain", ()),
        ("~/plain", ()),
        ("7", ()),
        ("{a: b}", ()),
    ],
)
def test_of_what_a_card_says_for_its_base_model_only_names_of_the_hub_are_read(tmp_path, said, read):
    (tmp_path / CARD_FILE).write_text(f"---\nbase_model: {said}\n---\n")
    assert read_base_model(tmp_path) == read


@pytest.fixture
def runs(tmp_path):
    """A fine-tuned teacher and a student of it, as runs leave them behind."""
    teacher = {
        "model": "/house/mine/plain",
        "task_name": "sst-2",
        "data_dir": "/house/mine/task",
        "output_dir": "/x/teacher",
    }
    write_run(tmp_path / "teacher", stage="finetune", arguments=teacher, finished={"eval_accuracy": 0.9})
    (tmp_path / "teacher" / CARD_FILE).write_text("---\nbase_model: a/b\n---\n")
    student = {"student_model": "/house/mine/general", "teacher_model": str(tmp_path / "teacher"), "pred_distill": True}
    student |= {"task_name": "sst-2", "output_dir": str(tmp_path / "student"), "train_batch_size": 16}
    student |= {"license": "mit", "languages": ["en"], "temperature": 2.0}
    student |= {"datasets": ["stanfordnlp/sst2"]}
    results = {"eval_accuracy": 0.75}
    path = write_run(tmp_path / "student", stage="task_distill prediction", arguments=student, finished=results)
    record = json.loads((path / "run.json").read_text())
    record |= {"arguments": record["launches"][0]["arguments"], "world_size": 2}
    record["identity"] |= {"teacher": "abc", "data": "def"}
    (path / "run.json").write_text(json.dumps(record))
    record = json.loads((tmp_path / "teacher" / "run.json").read_text())
    record["arguments"] = record["launches"][0]["arguments"]
    (tmp_path / "teacher" / "run.json").write_text(json.dumps(record))
    return tmp_path


def test_the_card_of_a_run_has_its_recipe_its_data_its_budget_and_its_evaluation_with_the_error(runs):
    card = run_card(runs / "student", {"dev": 100})
    assert (card.license, card.language, card.base_model) == ("mit", ["en"], ("a/b",))
    assert card.datasets == ["stanfordnlp/sst2"]
    (figure,) = card.figures
    assert (figure.metric, figure.split, figure.rows) == ("accuracy", "dev", 100)
    assert figure.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 100))
    recipe = card.sections["How it was made"]
    assert recipe.index("launchers/finetune_teacher.py") < recipe.index("launchers/task_distill.py")
    assert "--temperature 2.0" in recipe
    assert "--pred_distill" in recipe
    assert "/house/mine" not in render_card(card), "where things were is nobody's business"
    assert "| teacher | `abc` |" in card.sections["Data"]
    assert "6 optimizer steps of 16 samples" in card.sections["Losses and budget"]
    assert "loss 0.3333" in card.sections["Losses and budget"]
    assert "| sst-2 | dev | 100 | accuracy | 0.7500 | 0.0433 |" in card.sections["Evaluation"]
    assert "other tasks" in card.sections["What it is not for"]


def test_a_model_that_answers_for_each_token_is_offered_as_one(runs):
    assert run_card(runs / "student", {"dev": 100}).pipeline_tag == "text-classification"
    (runs / "student" / "config.json").write_text('{"architectures": ["BertForTokenClassification"]}')
    assert run_card(runs / "student", {"dev": 100}).pipeline_tag == "token-classification"


def test_a_general_student_is_said_to_predict_nothing(tmp_path):
    write_run(tmp_path / "general", finished={"eval_loss": 1.5})
    write_card(tmp_path / "general", run_card(tmp_path / "general", {}))
    text = (tmp_path / "general" / CARD_FILE).read_text()
    assert "it has no head" in text
    assert ModelCard(text).data.pipeline_tag == "feature-extraction"


def test_the_card_of_distilled_vectors_names_the_file_of_pairs_and_its_metric(tmp_path):
    results = {"eval_loss": 0.25, "eval_dev_spearman": 0.5}
    write_run(tmp_path / "encoder", stage="embed_distill", finished=results)
    card = replace(run_card(tmp_path / "encoder", {}), datasets=("a/texts",))
    loss, likeness = card.figures
    assert (loss.metric, loss.task, loss.split) == ("loss", "held-out text", "held-out text")
    assert (likeness.metric, likeness.task, likeness.split) == ("spearman", "dev", "STS file")
    data = ModelCard(render_card(card)).data
    assert data.metrics == ["loss", "spearman"]
    told = {result.metric_type: (result.dataset_type, result.dataset_name) for result in data.eval_results}
    assert told == {"loss": ("a/texts", "held-out text"), "spearman": ("dev", "dev")}, (
        "it learned nothing from the pairs"
    )


def test_the_standard_error_is_that_of_shares_and_correlations_and_of_nothing_else():
    assert standard_error("subset_accuracy", 0.5, 25) == pytest.approx(0.1)
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):  # pairs whose correlation is 0.6
        one, other = rng.normal(size=(2, 103))
        other = 0.6 * one + 0.8 * other
        found.append([pearsonr(one, other)[0], spearmanr(one, other)[0]])
    of_pearson, of_spearman = np.std(found, axis=0)
    assert standard_error("pearson", 0.6, 103) == pytest.approx(of_pearson, rel=0.05)
    assert standard_error("spearman", 0.58, 103) == pytest.approx(of_spearman, rel=0.05)
    assert standard_error("pearson", 0.6, 3) is None
    assert standard_error("macro_f1", 0.6, 100) is None


def test_f1_on_a_card_has_an_error_beside_the_accuracy_of_its_own_split(tmp_path):
    results = {"eval_accuracy": 0.9, "eval_f1": 0.8, "eval_score": 0.85, "eval_test_accuracy": 0.5, "eval_test_f1": 0.5}
    write_run(tmp_path / "student", finished=results)
    figures = run_card(tmp_path / "student", {"dev": 400, "test": 100}).figures
    errors = {(figure.split, figure.metric): figure.standard_error for figure in figures}
    assert errors["dev", "f1"] == pytest.approx(0.2 * math.sqrt(0.8 * 1.2 / 40))
    assert errors["test", "f1"] == pytest.approx(0.5 * math.sqrt(0.5 * 1.5 / 50))
    assert errors["dev", "score"] is None


def test_the_standard_error_of_f1_is_that_of_draws_of_as_many_rows():
    counts = np.array([120, 55, 225])  # true positives, errors, true negatives
    rows = counts.sum()
    positives, errors, _ = np.random.default_rng(0).multinomial(rows, counts / rows, size=40_000).T
    drawn = 2 * positives / (2 * positives + errors)
    found = standard_error("f1", 2 * 120 / (2 * 120 + 55), int(rows), accuracy=1 - 55 / rows)
    assert found == pytest.approx(drawn.std(), rel=0.02)
    assert standard_error("f1", 1.0, 400, accuracy=1.0) == 0
    assert standard_error("f1", 0.8, 400) is None, "without an accuracy nothing tells how many errors there are"
