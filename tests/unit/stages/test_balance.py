"""--loss_balance variance: every loss in parts of the teacher's variance."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.support.models import config_directory, random_batch
from tests.support.runs import read_metrics, run_ranks
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.objective import IntermediateObjective, LossWeights, Relations
from tinybert_ds.stages.balance import measure_variances
from tinybert_ds.types import EncoderOutput

pytestmark = pytest.mark.slow  # whole commands


def records(directory):
    return json.loads((directory / "run.json").read_text())


def expected_loss(line, variances):
    """Return the sum of a step's terms, each divided by its variance, with the weights of `balanced`."""
    weights = {name: 2.0 if "state_" in name and not name.endswith("_0") else 1.0 for name in variances}
    return sum(weights[name] * line[name] / variance for name, variance in variances.items())


@pytest.fixture(scope="module")
def balanced(general, tmp_path_factory):
    """Return the arguments of a balanced general distillation, its directory after two steps, and what it printed."""
    folder = tmp_path_factory.mktemp("balanced")
    words = [*general, "--loss_balance", "variance", "--hidden_weight", 2, "--save_steps", 1]
    words += ["--lr_schedule", "constant", "--max_steps", 2, "--output_dir", folder / "out"]
    output = run_ranks("general_distill", words, log=folder / "log").check().output
    shutil.copy(folder / "out" / "run.json", folder / "measured.json")  # a test changes the other one
    return words, folder / "out", output


def test_each_term_is_divided_by_the_variance_that_run_json_keeps(balanced):
    _, directory, _ = balanced
    variances = records(directory)["loss_variances"]
    line = read_metrics(directory)[0]
    assert set(variances) == {name for name in line if "_loss/" in name}
    assert line["loss"] == pytest.approx(expected_loss(line, variances), rel=1e-5)


def test_a_run_that_goes_on_keeps_the_variances_that_it_began_with(balanced, tmp_path):
    words, directory, output = balanced
    assert output.count("each loss is divided by the teacher's variance") == 1
    record = records(directory)
    record["loss_variances"] = {name: 2 * value for name, value in record["loss_variances"].items()}
    (directory / "run.json").write_text(json.dumps(record))
    again = run_ranks("general_distill", [*words, "--max_steps", 3], log=tmp_path / "log").check().output
    assert "each loss is divided" not in again
    assert records(directory)["loss_variances"] == record["loss_variances"]
    last = next(line for line in reversed(read_metrics(directory)) if "loss" in line)
    assert last["loss"] == pytest.approx(expected_loss(last, record["loss_variances"]), rel=1e-5)


def test_a_run_without_balance_does_not_become_one_with_it(balanced, general, tmp_path):
    words = [*general, "--max_steps", 1, "--output_dir", tmp_path / "out"]
    run_ranks("general_distill", words, log=tmp_path / "log").check()
    assert "loss_variances" not in records(tmp_path / "out")
    refused = run_ranks("general_distill", [*words, "--loss_balance", "variance"], log=tmp_path / "again")
    assert refused.returncode == 2
    assert "loss_balance was None, now 'variance'" in refused.output


def test_variances_of_other_losses_are_refused(balanced, tmp_path):
    words, directory, _ = balanced
    before = (directory / "run.json").read_text()
    record = json.loads(before)
    del record["loss_variances"]["hidden_loss/state_0"]
    (directory / "run.json").write_text(json.dumps(record))
    refused = run_ranks("general_distill", [*words, "--max_steps", 5], log=tmp_path / "log")
    (directory / "run.json").write_text(before)
    assert refused.returncode == 2
    assert "loss_variances in run.json are of" in refused.output


def test_several_students_and_ranks_measure_what_one_does(balanced, general, tmp_path):
    _, directory, _ = balanced
    other = config_directory(tmp_path / "other", num_hidden_layers=1)
    words = [*general, "--student_model", other, "--loss_balance", "variance", "--max_steps", 1]
    words += ["--output_dir", tmp_path / "out"]
    run_ranks("general_distill", words, world_size=2, log=tmp_path / "log").check()
    expected = json.loads((directory.parent / "measured.json").read_text())["loss_variances"]
    assert set(records(tmp_path / "out" / "other")["loss_variances"]) == {
        *("attention_loss/layer_1", "hidden_loss/state_0", "hidden_loss/state_1")
    }
    assert records(tmp_path / "out" / "student")["loss_variances"] == pytest.approx(expected, rel=1e-6)


def test_the_intermediate_stage_of_a_task_is_balanced_too(inputs, tmp_path):
    models = ["--teacher_model", tmp_path / "teacher", "--data_dir", inputs / "task", "--task_name", "sst-2"]
    words = ["--model", inputs / "teacher", *models[2:], "--max_steps", 1, "--output_dir", tmp_path / "teacher"]
    run_ranks("finetune", words, log=tmp_path / "teacher_log").check()
    words = ["--student_model", inputs / "student", "--output_dir", tmp_path / "start", *models]
    run_ranks("inherit", words, log=tmp_path / "start_log").check()
    words = [*models, "--student_model", tmp_path / "start", "--loss_balance", "variance", "--max_steps", 1]
    words += ["--logging_steps", 1, "--output_dir", tmp_path / "out"]
    run_ranks("task_distill", words, log=tmp_path / "log").check()
    variances, line = records(tmp_path / "out")["loss_variances"], read_metrics(tmp_path / "out")[0]
    assert line["loss"] == pytest.approx(sum(line[name] / value for name, value in variances.items()), rel=1e-5)


def test_a_term_of_relations_is_divided_by_the_weighed_sum_of_its_kinds_variances(batch_of_rows):
    batch = batch_of_rows
    generator = torch.Generator().manual_seed(0)
    shown = {kind: (torch.randn(2, 2, 8, 3, generator=generator),) for kind in ("queries", "values")}
    teacher = EncoderOutput((), shown["queries"], (), (1.0,), None, shown["values"])
    relations = Relations(layers=(1,), heads=3, form="scores", queries=2.0, keys=0.0, values=0.5)
    weights = LossWeights(hidden=0.0, embedding=0.0)
    objective = IntermediateObjective(2, 6, 6, projection="none", padding="valid", weights=weights, relations=relations)
    student = DistilledStudent(torch.nn.Identity(), objective)
    (found,) = measure_variances(lambda _: teacher, [student], [batch], torch.device("cpu"))
    expected = 0.0
    for kind, factor in (("queries", 2.0), ("values", 0.5)):
        rows = shown[kind][0].transpose(1, 2).reshape(2, 8, 3, 2)  # three heads of width 2, cut anew
        scores = [
            torch.cat(
                [
                    (row[:n, head].double() @ row[:n, head].double().T).flatten()
                    for row, n in zip(rows, (8, 5), strict=True)
                ]
            )
            for head in range(3)
        ]
        expected += factor * float(sum(each.var(unbiased=False) for each in scores)) / 3 / 2
    assert found == {"relation_loss/layer_2": pytest.approx(expected, rel=1e-6)}


@pytest.fixture
def batch_of_rows():
    return random_batch((8, 5))
