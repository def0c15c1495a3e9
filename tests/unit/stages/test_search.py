import json
import math

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.support.runs import run_ranks
from tinybert_ds.arguments import FinetuneArguments, parse_arguments
from tinybert_ds.errors import ConfigError
from tinybert_ds.stages.search import Trial, markdown, open_search, summarise

COMMAND = "--model m --data_dir d --task_name sst-2 --output_dir o".split()


def test_means_and_deviations_are_over_the_seeds_and_the_best_mean_wins_over_the_best_run():
    scores = {(1e-5, 1): 0.6, (1e-5, 2): 0.8, (3e-5, 1): 0.9, (3e-5, 2): 0.1}
    results = {Trial(*trial): {"eval_f1": value, "eval_accuracy": 0.5} for trial, value in scores.items()}
    content = summarise(results, "eval_f1")
    first, second = content["learning_rates"]
    assert first["mean"] == pytest.approx({"eval_f1": 0.7, "eval_accuracy": 0.5})
    assert first["standard_deviation"] == pytest.approx({"eval_f1": math.sqrt(0.02), "eval_accuracy": 0.0})
    assert second["values"]["eval_f1"] == [0.9, 0.1]
    assert content["taken"] == {"learning_rate": 1e-5, "seed": 2}
    text = markdown(content)
    assert "| 1e-05 | 0.7000 | 0.1414 | 0.6000 | 0.8000 |" in text
    assert "| 3e-05 | 0.5000 | 0.5657 | 0.9000 | 0.1000 |" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--search_seeds", "1", "2"], "--search_seeds is for --search"),
        (["--search", "--search_seeds", "1"], "two or more different ones"),
        (["--search", "--search_seeds", "1", "1"], "two or more different ones"),
        (["--search", "--search_learning_rates", "1e-5", "0"], "--search_learning_rates is 0.0; it must be above 0"),
        (
            ["--search", "--learning_rate", "1e-3"],
            "--learning_rate 0.001 is for a single run; a search takes --search_l",
        ),
        (["--search", "--recipe", "paper/rte", "--learning_rate", "1e-3"], "--learning_rate 0.001 is for a single run"),
        (["--search", "--seed", "7"], "--seed 7 is for a single run; a search takes --search_seeds"),
        (["--search", "--resume", "checkpoints/step-2"], "goes on by itself"),
    ],
)
def test_a_search_that_could_not_tell_anything_is_refused(words, said):
    _, problems = parse_arguments(FinetuneArguments, [*COMMAND, *words], "command.py")
    assert len(problems) == 1
    assert said in problems[0]


def test_a_search_takes_a_recipe_whose_learning_rate_is_for_a_single_run(tmp_path):
    (tmp_path / "own.yaml").write_text("finetune: {learning_rate: 7e-5, seed: 3, num_train_epochs: 2}")
    words = [*COMMAND, "--search", "--recipe", str(tmp_path / "own.yaml")]
    assert parse_arguments(FinetuneArguments, words, "command.py")[1] == []


@pytest.mark.slow
def test_a_search_trains_every_pair_and_keeps_the_chosen_model(inputs, tmp_path):
    words = ["--model", inputs / "teacher", "--data_dir", inputs / "task", "--task_name", "sst-2", "--search"]
    words += ["--train_batch_size", 16, "--max_steps", 3, "--search_learning_rates", 3e-3, 1e-9, "--search_seeds", 1, 2]
    words += ["--output_dir", tmp_path / "out", "--license", "mit"]
    run_ranks("finetune", words, log=tmp_path / "log").check()
    content = json.loads((tmp_path / "out" / "search.json").read_text())
    for row in content["learning_rates"]:
        for seed, value in zip(row["seeds"], row["values"]["eval_accuracy"], strict=True):
            run = json.loads((tmp_path / "out" / f"lr{row['learning_rate']:g}-seed{seed}" / "run.json").read_text())
            assert run["finished"]["results"]["eval_accuracy"] == value
            assert (run["identity"]["seed"], run["identity"]["learning_rate"]) == (seed, row["learning_rate"])
    chosen = tmp_path / "out" / "lr{learning_rate:g}-seed{seed}".format(**content["taken"])
    expected, found = (load_file(folder / "model.safetensors") for folder in (chosen, tmp_path / "out"))
    assert all(found[name].equal(value) for name, value in expected.items())
    assert not (tmp_path / "out" / "run.json").exists()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "mit"
    assert (tmp_path / "out" / "search.md").read_text() in (tmp_path / "log.rank0").read_text()

    (tmp_path / "out" / "model.safetensors").unlink()  # as if stopped before the end: all trials are done
    output = run_ranks("finetune", words, log=tmp_path / "log").check().output
    assert output.count("nothing to do") == 4
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_search_starts_in_an_empty_directory_and_goes_on_in_its_own(tmp_path):
    open_search(tmp_path / "new" / "deep", resume="never")
    open_search(tmp_path / "new" / "deep", resume="auto")
    with pytest.raises(ConfigError, match="--resume is never"):
        open_search(tmp_path / "new" / "deep", resume="never")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"thesis.tex; give an empty or new directory"):
        open_search(tmp_path / "mine", resume="auto")
    with pytest.raises(ConfigError, match="is a file"):
        open_search(tmp_path / "mine" / "thesis.tex", resume="auto")
