import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.models import model_directory
from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.compare import CompareArguments
from tinybert_ds.data.batching import RowLayout
from tinybert_ds.data.task_batches import EncodedExamples
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.stages import compare
from tinybert_ds.stages.compare import (
    Candidate,
    build_report,
    main,
    measure_latency_ms,
    path_problems,
    read_stages,
    render_report,
)

SENTENCES = ["a very good film", "the story is dull and long", "bad", "we liked it", "the plot was not good, not bad"]


@pytest.fixture
def setting(tmp_path, monkeypatch, one_rank_group) -> Path:
    """A teacher, two students and a task; the second student has its outputs the other way round."""
    monkeypatch.setattr(compare, "ROUNDS", 1)
    monkeypatch.setattr(compare, "join", lambda log_level: World(0, 1, 0, torch.device("cpu")))
    names = ("negative", "positive")
    model_directory(tmp_path / "teacher", labels=names)
    model_directory(tmp_path / "student", labels=names, num_hidden_layers=2, hidden_size=24, seed=1)
    model_directory(tmp_path / "plain", labels=names[::-1], num_hidden_layers=2, hidden_size=24, seed=2)
    rows = [f"{sentence}\t{label}" for sentence, label in zip(SENTENCES * 4, [1, 0, 0, 1, 1] * 4, strict=True)]
    for split, chosen in {"train": rows[:7], "test": rows[:20]}.items():
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *chosen, ""]), encoding="utf-8")
    return tmp_path


def command(setting: Path, **changes: object) -> list[str]:
    values = {"teacher": setting / "teacher", "student": setting / "student", "data_dir": setting, "task_name": "sst-2"}
    values |= {"output_dir": setting / "out", **changes}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def accuracy_one_by_one(directory: Path, positive: int) -> float:
    """Accuracy on the test rows with nothing of ours: a row at a time, unpadded."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        best = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) == positive for text in SENTENCES]
    return float(np.mean([answer == label for answer, label in zip(best, [1, 0, 0, 1, 1], strict=True)]))


@pytest.mark.slow
def test_the_report_holds_what_an_independent_measurement_finds(setting):
    stages = setting / "stages.json"
    recorded = [
        {"name": "shards", "seconds": 3, "finished": True, "command": ["x"]},
        {"name": "compare_models", "seconds": 5, "finished": False, "command": ["y"]},
    ]
    stages.write_text(json.dumps(recorded), encoding="utf-8")
    others = {"student_before_training": setting / "student", "student_without_distillation": setting / "plain"}
    main(command(setting, **others, stages_file=stages))
    report = json.loads((setting / "out" / "report.json").read_text(encoding="utf-8"))

    models = ["teacher", "student", *others]
    assert list(report) == [*models, "majority_class", "compression", "speedup", "stages", "metric"]
    assert report["metric"] == "accuracy"
    for name, folder, positive in zip(models, ("teacher", "student", "student", "plain"), (1, 1, 1, 0), strict=True):
        weights = AutoModelForSequenceClassification.from_pretrained(setting / folder).parameters()
        assert set(report[name]) == {"parameters", "metric", "latency_ms", "bytes"}
        assert report[name]["bytes"] == (setting / folder / "model.safetensors").stat().st_size
        assert report[name]["parameters"] == sum(weight.numel() for weight in weights)
        assert report[name]["metric"] == pytest.approx(accuracy_one_by_one(setting / folder, positive))
        assert set(report[name]["latency_ms"]) == {"1", "32"}
    assert report["majority_class"] == {"metric": 0.6}  # train: 4 of 7 positive; test: 12 of 20
    assert report["compression"] == report["teacher"]["parameters"] / report["student"]["parameters"]
    ratios = [report["teacher"]["latency_ms"][size] / report["student"]["latency_ms"][size] for size in ("1", "32")]
    assert report["speedup"] == min(ratios)
    assert [stage["name"] for stage in report["stages"]] == ["shards", "compare_models"]
    assert report["stages"][0]["seconds"] == 3
    table = (setting / "out" / "report.md").read_text(encoding="utf-8")
    assert f"| teacher | {report['teacher']['parameters']:,} | {report['teacher']['metric']:.4f} |" in table
    assert "Its accuracy is equal to that of the student before training." in table
    assert "| shards | 3.0 |" in table
    arguments, _ = parse_arguments(CompareArguments, command(setting))
    assert list(path_problems(arguments)) == []  # it may replace its own report
    (setting / "out" / "report.md").write_text("# Run x\n", encoding="utf-8")
    (problem,) = path_problems(arguments)
    assert f"report.md in {setting / 'out'} were not written by this command" in problem
    (setting / "out" / "report.json").write_text('{"teacher": 1}', encoding="utf-8")
    (problem,) = path_problems(arguments)
    assert "report.md and report.json in" in problem


@pytest.mark.slow
def test_a_comparison_on_words_that_a_tokeniser_does_not_know_is_refused_unless_it_is_meant(setting):
    rows = ["sentence\tlabel", *(f"фильм был хорош\t{label}" for label in (0, 1, 1))]
    (setting / "test.tsv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    with pytest.raises(DataError, match=r"9 of 9 tokens are unknown to the tokeniser.*--allow_unknown"):
        main(command(setting))
    main([*command(setting), "--allow_unknown"])
    assert (setting / "out" / "report.json").is_file()


@pytest.mark.slow
def test_without_labels_of_training_rows_the_majority_is_that_of_the_split(setting):
    (setting / "train.tsv").write_text("\n".join(["sentence", *SENTENCES, ""]), encoding="utf-8")
    task = "files: {train: train.tsv, dev: test.tsv, test: test.tsv}\ntext: sentence\nlabel: label\n"
    (setting / "task.yaml").write_text(task + "labels: [negative, positive]\nmetric: accuracy\n", encoding="utf-8")
    ids = (setting / "test.tsv").read_text().replace("\t0", "\tnegative").replace("\t1", "\tpositive")
    (setting / "test.tsv").write_text(ids, encoding="utf-8")
    main(command(setting, task_name=None, task_file=setting / "task.yaml", split="test"))
    report = json.loads((setting / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["majority_class"] == {"metric": 0.6}


class TimedModule(nn.Module):
    """Says what a forward costs by moving a clock."""

    def __init__(
        self, name: str, clock: list[float], log: list[tuple[str, list[list[int]]]], costs: list[float]
    ) -> None:
        super().__init__()
        self.name, self.clock, self.log, self.costs = name, clock, log, iter(costs)

    def forward(self, batch) -> None:
        """Record the batch and let its time pass."""
        self.log.append((self.name, (batch.input_ids * batch.attention_mask).tolist()))
        self.clock[0] += next(self.costs)


def test_latency_is_the_median_of_interleaved_forwards_without_the_first_round(monkeypatch):
    clock, log = [0.0], []
    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock[0])
    encoded = EncodedExamples(np.int32([5, 6, 7, 7, 8]), np.array([0, 1, 2, 5]), np.int32([1, 1, 3]), None)
    layout = RowLayout("valid", 16, pad_id=0)
    costs = {"teacher": [9, 9, 0.003, 0.001, 0.002, 0.004], "student": [9, 9, 0.001, 0.001, 0.001, 0.5]}
    candidates = [Candidate(name, TimedModule(name, clock, log, c), encoded, layout) for name, c in costs.items()]

    medians = measure_latency_ms(candidates, batch_size=2, batches=2, rounds=2)

    assert medians == {"teacher": pytest.approx(2.5), "student": pytest.approx(1.0)}
    first, second = [[5], [6]], [[7, 7, 8], [5, 0, 0]]  # the third row, then from the start again
    assert log == 3 * [("teacher", first), ("teacher", second), ("student", first), ("student", second)]


def test_a_model_is_timed_on_its_device_which_has_finished_before_and_after(monkeypatch):
    log = []
    monkeypatch.setattr(compare, "wait_for", lambda device: log.append(device.type))
    monkeypatch.setattr(compare.time, "perf_counter", lambda: log.append("clock") or 0.0)
    encoded = EncodedExamples(np.int32([5, 6]), np.array([0, 1, 2]), np.int32([1, 1]), None)
    layout = RowLayout("valid", 16, pad_id=0)
    served = torch.device("meta")
    on_gpu = Candidate("teacher", lambda batch: log.append(batch.input_ids.device.type), encoded, layout, device=served)
    measure_latency_ms([on_gpu, on_gpu._replace(name="student", device=torch.device("cpu"))], 1, batches=1, rounds=1)
    turns = [[device, "clock", device, device, "clock"] for device in ("meta", "cpu")]
    assert log == 2 * (turns[0] + turns[1])


def test_the_table_says_so_when_distillation_did_not_help():
    module = SimpleNamespace(encoder=SimpleNamespace(model=nn.Linear(2, 2)))
    encoded = EncodedExamples(np.int32([5]), np.array([0, 1]), np.int32([1]), None)
    names = ("teacher", "student", "student_without_distillation")
    candidates = [Candidate(name, module, encoded, RowLayout("valid", 16, 0)) for name in names]
    latencies = {1: dict.fromkeys(names, 2.0), 32: {**dict.fromkeys(names, 4.0), "student": 1.0}}

    def table(student: float) -> str:
        metrics = {"teacher": 0.8, "student": student, "student_without_distillation": 0.7}
        report = build_report(candidates, metrics, latencies, 0.6, [])
        assert (report["compression"], report["speedup"]) == (1.0, 1.0)
        return render_report(report, TASKS["sst-2"], "test", 100)

    assert "Distillation did not help" not in table(0.75)
    assert "Its accuracy is 0.0500 above that of the student without distillation." in table(0.75)
    assert "Its accuracy is 0.0500 below that of the teacher." in table(0.75)
    assert "standard error of its accuracy on 100 rows is 0.0433" in table(0.75)
    assert "Distillation did not help" in table(0.7)
    assert "learnt nothing" not in table(0.65)
    assert "learnt nothing" in table(0.6)


def test_paths_that_are_not_there_are_reported_together_before_any_work(setting):
    (setting / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="3 problems") as error:
        main(command(setting, teacher=setting / "gone", output_dir=setting / "file", max_seq_length=0))
    for part in ("--teacher", "gone is not a directory", "--output_dir", "--max_seq_length is 0"):
        assert part in str(error.value)


def test_an_unlabelled_split_and_a_model_without_head_are_refused_and_nothing_is_written(setting):
    test = setting / "test.tsv"
    test.write_text("index\tsentence\n0\tgood\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.tsv has no labels"):
        main(command(setting))
    test.write_text("sentence\tlabel\ngood\t1\n", encoding="utf-8")
    model_directory(setting / "encoder")
    with pytest.raises(ModelError, match="no fine-tuned classification head"):
        main(command(setting, student=setting / "encoder"))
    assert not (setting / "out").exists()


@pytest.mark.parametrize(
    "content", ["{", '{"name": 1}', "[1]", '[{"name": "a"}]', '[{"name": "a", "seconds": "soon"}]']
)
def test_a_stages_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "stages.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_stages(path)
