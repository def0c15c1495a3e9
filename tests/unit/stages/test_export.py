"""The export of a tiny classifier, its files opened as their users open them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.models import model_directory, published_directory, tiny_config, write_tokenizer
from tests.support.runs import write_sentiment
from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.compare import CompareArguments
from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.data.tasks import find_task
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.export.runtimes import open_file
from tinybert_ds.stages import compare, export
from tinybert_ds.stages.export_subject import load_subject

pytestmark = pytest.mark.slow  # a graph is traced, written, optimised and measured

LABELS = ("positive", "negative")  # not in the order of the task
ONNX_OPENER = """
import json, sys
import numpy, onnxruntime
from tokenizers import Tokenizer
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/{sys.argv[2]}", providers=["CPUExecutionProvider"])
run = lambda feed: session.run(["logits"], {x.name: feed[x.name] for x in session.get_inputs()})[0]
"""
OPENVINO_OPENER = """
import json, sys
import numpy, openvino
from tokenizers import Tokenizer
exact = {"INFERENCE_PRECISION_HINT": "f32"}  # CPUs that multiply bf16 would take that
model = openvino.Core().compile_model(f"{sys.argv[1]}/{sys.argv[2]}", "CPU", exact)
run = lambda feed: model({x.get_any_name(): feed[x.get_any_name()] for x in model.inputs})["logits"]
"""
ACCURACY = """
tokenizer = Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
labels = json.load(open(f"{sys.argv[1]}/config.json"))["id2label"]
rows = [line.rstrip().split("\\t") for line in open(sys.argv[3])][1:]
right = 0
for text, label in rows:
    found = tokenizer.encode(text)
    feed = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
    logits = run({name: numpy.array([ids], dtype=numpy.int64) for name, ids in feed.items()})
    right += labels[str(int(logits[0].argmax()))] == ("negative", "positive")[int(label)]
print(right / len(rows))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A classifier and its task."""
    folder = tmp_path_factory.mktemp("export")
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
    model_directory(folder / "student", labels=LABELS, seed=1, **sizes)
    write_sentiment(folder / "task", rows=80)
    return folder


def words(folder: Path, out: str, *more: str) -> list[str]:
    return [
        *("--model", str(folder / "student"), "--output_dir", str(folder / out), "--max_loss", "0.1"),
        *("--threads", "1", *more),
    ]


def of_task(folder: Path) -> list[str]:
    return ["--data_dir", str(folder / "task"), "--task_name", "sst-2", "--max_seq_length", "64"]


ALONE = World(0, 1, 0, torch.device("cpu"))


@contextmanager
def no_ranks() -> Iterator[pytest.MonkeyPatch]:
    """Let evaluations run without a process group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinybert_ds.engine.prediction.gather_objects", lambda own: [own])
        patch.setattr("tinybert_ds.engine.prediction.read_together", lambda read, world: read())
        yield patch


def run_export(command: list[str]) -> None:
    """Run the command in this process, with few and short measurements."""
    with no_ranks() as patch:
        patch.setattr(export, "join", lambda log_level: ALONE)
        patch.setattr(export, "ROUNDS", 1)
        patch.setattr(export, "LATENCY_BATCHES", {1: 1, 4: 1})
        export.main(command)


@pytest.fixture(scope="module")
def exported(folder) -> Path:
    """The classifier as ONNX, exported once for all tests."""
    more = ["--format", "onnx", "--precision", "fp32", "int8", "--license", "mit", "--languages", "en"]
    run_export(words(folder, "out", *of_task(folder), *more))
    return folder / "out"


def largest_difference(student: Path, kind, file: Path, longest: int = 64) -> float:
    """The largest difference of a logit from those of transformers, over many sizes of batches and lengths."""
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    run, rng, found = open_file(kind, file, 1), np.random.default_rng(0), 0.0
    sizes = [(1 + number % 33, 1 + (7 * number) % longest) for number in range(66)]
    for rows, length in [*sizes, (1, 1), (33, longest), (1, longest), (33, 1)]:
        lengths = rng.integers(1, length + 1, rows)
        lengths[0] = length
        mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        types = (np.arange(length) >= lengths[:, None] // 2).astype(np.int64) * mask
        feed = {
            "input_ids": rng.integers(5, 90, (rows, length)) * mask,
            "attention_mask": mask,
            "token_type_ids": types,
        }
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(value) for name, value in feed.items()}).logits.numpy()
        found = max(found, float(np.abs(run(feed) - wanted).max()))
    return found


def accuracy_of_a_fresh_process(opener: str, out: Path, file: str, task: Path) -> float:
    command = [sys.executable, "-c", opener + ACCURACY, str(out), file, str(task / "dev.tsv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def accuracy_of_transformers(student: Path, task: Path) -> float:
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(student),
        AutoTokenizer.from_pretrained(student),
    )
    rows = [line.split("\t") for line in (task / "dev.tsv").read_text().splitlines()[1:]]
    with torch.no_grad():
        names = [LABELS[int(model.eval()(**tokenizer(text, return_tensors="pt")).logits.argmax())] for text, _ in rows]
    return float(
        np.mean([name == ("negative", "positive")[int(label)] for name, (_, label) in zip(names, rows, strict=True)])
    )


def test_onnx_in_float_is_the_model_for_every_batch_and_length(folder, exported):
    assert largest_difference(folder / "student", "onnx", exported / "onnx" / "model.onnx") < 1e-4


def test_the_graph_has_none_of_what_onnx_runtime_computes_slowly(exported, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "merged.onnx")
    onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "merged.onnx").graph
    assert {"LayerNormalization", "Softmax"} <= {node.op_type for node in graph.node}
    assert "SkipLayerNormalization" not in {node.op_type for node in graph.node}


def test_attention_is_one_operator_in_8_bits_alone_where_older_runtimes_are_not_asked_for(folder, exported, tmp_path):
    def kinds(file: Path) -> set[str]:
        model = onnx.load(file)
        return {node.op_type for node in model.graph.node} | {f"opset {model.opset_import[0].version}"}

    assert {"Softmax", "opset 20"} <= kinds(exported / "onnx" / "model.onnx")
    small = kinds(exported / "onnx" / "model_quantized.onnx")
    assert {"Attention", "MatMulInteger", "opset 24", "NonZero"} <= small
    assert not {"Softmax", "Transpose", "Range"} & small  # heads stay side by side, and the mask is that of the rows
    int8 = ["--format", "onnx", "--precision", "int8"]
    made = folder / tmp_path.name / "onnx" / "model_quantized.onnx"
    run_export(words(folder, tmp_path.name, *of_task(folder), *int8, "--int8_opset", "20"))
    assert {"Softmax", "MatMulInteger", "opset 20"} <= kinds(made)
    run_export(words(folder, tmp_path.name, *of_task(folder), *int8, "--keep_padding"))
    assert {"Attention", "MatMulInteger", "opset 24"} <= kinds(made)
    assert not {"NonZero", "Reshape"} & kinds(made), "every shape follows from those of the inputs"


def test_a_fresh_process_opens_the_directory_with_onnx_runtime_and_repeats_the_metric(folder, exported):
    report = json.loads((exported / "report.json").read_text())
    rows = {row["name"]: row for row in report["exports"]}
    whole = accuracy_of_a_fresh_process(ONNX_OPENER, exported, "onnx/model.onnx", folder / "task")
    assert whole == pytest.approx(rows["ONNX fp32"]["metric"])
    assert whole == pytest.approx(accuracy_of_transformers(folder / "student", folder / "task"))
    small = accuracy_of_a_fresh_process(ONNX_OPENER, exported, "onnx/model_quantized.onnx", folder / "task")
    assert small == pytest.approx(rows["ONNX int8 dynamic"]["metric"], abs=0.051)  # a row of 20: batches scale together


def test_the_report_has_every_file_beside_the_model_with_all_that_was_measured(exported):
    report = json.loads((exported / "report.json").read_text())
    first, whole, small = report["exports"][:3]
    assert [row["name"] for row in (first, whole, small)] == ["torch fp32", "ONNX fp32", "ONNX int8 dynamic"]
    assert whole["loss"] == 0
    assert whole["agreement"] == 1
    assert whole["largest_difference"] < 1e-4
    assert small["largest_difference"] > 1e-4
    for row in report["exports"]:
        assert set(row["latency_ms"]) == {"1", "4"}
        assert all(value > 0 for value in row["latency_ms"].values())
        assert row["peak_mib"] > 10
        assert row["file"] == "" or row["bytes"] == (exported / row["file"]).stat().st_size or row["kind"] == "openvino"
    about = report["about"]
    assert (about["task"], about["split"], about["rows"], about["metric"]) == ("sst-2", "dev", 20, "accuracy")
    table = (exported / "report.md").read_text()
    assert f"| student, ONNX fp32 | {whole['bytes'] / 2**20:.1f} | {whole['metric']:.4f} |" in table
    assert "opset 20 in fp32 and fp16, 24 in int8." in table
    assert "1 threads" in table


def test_the_card_is_read_by_the_hub_s_own_classes(exported):
    data = ModelCard.load(exported / "README.md").data
    assert (data.license, data.language, data.pipeline_tag) == ("mit", ["en"], "text-classification")
    files = {result.metric_name.partition(" of ")[2] for result in data.eval_results}
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx"} <= files
    assert all(result.dataset_split == "dev" and result.metric_type == "accuracy" for result in data.eval_results)


def test_the_directory_holds_what_others_look_for(exported):
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx", "onnx/model_quantized.onnx"}
    assert wanted <= names
    assert not any(name.startswith(".") or "whole" in name for name in names)


def test_the_config_states_what_text_embeddings_inference_does_not_start_without(exported, tmp_path):
    """It reads the architecture's name, positions and both maps of labels, which transformers leaves out where they
    are its own; see launchers/README.md."""
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert isinstance(config["max_position_embeddings"], int)
    assert config["id2label"] == {"0": "positive", "1": "negative"}
    assert config["label2id"] == {"positive": 0, "negative": 1}
    unnamed = tiny_config()
    unnamed.save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    export.name_outputs(tmp_path / "config.json", unnamed)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == unnamed.hidden_size


def test_a_comparison_has_a_row_for_each_file_and_finds_what_the_export_found(folder, exported):
    given = ["--teacher", folder, "--student", folder, "--output_dir", folder / "compared", "--split", "dev"]
    arguments, _ = parse_arguments(CompareArguments, [*map(str, given), *of_task(folder)])
    with no_ranks():
        found = compare.measure_exported(exported, 7, find_task("sst-2", None), arguments, ALONE)
    rows = json.loads((exported / "report.json").read_text())["exports"][1:]
    assert [candidate.name for candidate, _ in found] == [f"student, {row['name']}" for row in rows]
    assert [metric for _, metric in found] == pytest.approx([row["metric"] for row in rows])
    assert [(candidate.parameters, candidate.size_bytes) for candidate, _ in found] == [
        (7, row["bytes"]) for row in rows
    ]
    with pytest.raises(
        ConfigError, match=r"student holds no export; give the --output_dir of launchers/export_model\.py"
    ):
        compare.measure_exported(folder / "student", 7, find_task("sst-2", None), arguments, ALONE)


@pytest.mark.skipif(
    "ONEDNN_MAX_CPU_ISA" in os.environ, reason="OpenVINO crashes where oneDNN is kept from the CPU's ISA"
)
def test_openvino_in_float_is_the_model_and_a_fresh_process_repeats_the_metric(folder):
    out = folder / "openvino_out"
    command = words(folder, out.name, *of_task(folder), "--format", "openvino", "--precision", "fp32", "int8")
    file = out / "openvino" / "openvino_model.xml"
    assert openvino_difference(command, folder / "student", file) < 1e-4
    rows = {row["name"]: row for row in json.loads((out / "report.json").read_text())["exports"]}
    for name, key in (("openvino_model.xml", "fp32"), ("openvino_model_qint8_quantized.xml", "int8 static")):
        found = accuracy_of_a_fresh_process(OPENVINO_OPENER, out, f"openvino/{name}", folder / "task")
        assert found == pytest.approx(rows[f"OpenVINO {key}"]["metric"], abs=0.051)


@pytest.mark.skipif(
    "ONEDNN_MAX_CPU_ISA" in os.environ, reason="OpenVINO crashes where oneDNN is kept from the CPU's ISA"
)
@pytest.mark.exhaustive
def test_openvino_reads_what_other_architectures_have_in_the_place_of_attention(tmp_path):
    """Of a Fourier transform in opset 20 and later it overlooks the axis, and says nothing."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
    model_directory(tmp_path / "student", model_type="fnet", labels=LABELS, **sizes)
    command = words(tmp_path, "out", "--format", "openvino", "--precision", "fp32", "--max_seq_length", "40")
    file = tmp_path / "out" / "openvino" / "openvino_model.xml"
    assert openvino_difference(command, tmp_path / "student", file) < 1e-4


def openvino_difference(command: list[str], student: Path, file: Path) -> float:
    """Return `largest_difference` of an export, both made in a process of their own, which then takes a signal.

    On CPUs with AMX each of OpenVINO's cores puts a stack for signals in the place of the one before. The last of two
    that go in the order in which they came leaves the one of the first, which is gone: the next signal would end the
    process with a segmentation fault.
    """
    code = (
        "import gc, os, signal, sys; from pathlib import Path\n"
        "from tests.unit.stages.test_export import largest_difference, run_export\n"
        "run_export(sys.argv[3:])\n"
        "print(largest_difference(Path(sys.argv[1]), 'openvino', Path(sys.argv[2])))\n"
        "gc.collect(); signal.signal(signal.SIGTERM, lambda number, frame: None); os.kill(os.getpid(), signal.SIGTERM)"
    )
    argv = [sys.executable, "-c", code, str(student), str(file), *command]
    root = Path(__file__).parents[3]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_a_model_without_token_types_is_exported_without_a_task_and_checked_on_noise(tmp_path):
    model_directory(tmp_path / "student", model_type="roberta", labels=LABELS, num_hidden_layers=2)
    run_export(words(tmp_path, "out", "--format", "onnx", "--precision", "fp32", "fp16", "--max_seq_length", "40"))
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["exports"]
    assert [row["name"] for row in rows] == ["torch fp32", "ONNX fp32", "ONNX fp16"]
    assert rows[1]["largest_difference"] < 1e-4
    assert rows[1]["metric"] is None
    assert rows[2]["agreement"] > 0.9


def test_a_published_model_in_a_folder_of_the_old_layout_is_measured_as_any_other(tmp_path, monkeypatch):
    inside, _ = published_directory(tmp_path / "student" / "0_Transformer", labels=2)
    write_tokenizer(inside)  # a bare vocab.txt does not say its casing
    monkeypatch.setattr(export, "ROUNDS", 1)
    monkeypatch.setattr(export, "LATENCY_BATCHES", {1: 1})
    arguments, _ = parse_arguments(ExportModelArguments, words(tmp_path, "out", "--precision", "fp32"))
    with no_ranks():
        subject = load_subject(arguments.model, None, arguments, ALONE, role="model")
        (row,) = export.measure([(subject, tmp_path / "scratch", {})], [], 1)
    assert row.peak_mib is not None
    assert row.bytes == (inside / "pytorch_model.bin").stat().st_size


def test_a_file_that_loses_too_much_fails_the_command_with_its_figures_and_nothing_is_written(folder, monkeypatch):
    monkeypatch.setattr(export, "peak_mib", lambda *words: None)
    true_open = export.open_export

    def spoiled(kind, file, threads):
        run = true_open(kind, file, threads)
        return lambda feed: -run(feed)

    monkeypatch.setattr(export, "open_export", spoiled)
    more = ["--format", "onnx", "--precision", "fp32", "--max_loss", "0"]
    told = r"onnx/model.onnx \(ONNX fp32\) loses .* of accuracy .* more than --max_loss 0; .*nothing was"
    with pytest.raises(DataError, match=told):
        run_export([*words(folder, "bad"), *of_task(folder), *more])
    assert not (folder / "bad").exists()
    assert not list(folder.glob(".exporting-*"))


def test_an_operator_set_that_cannot_be_written_or_opened_is_told_of(folder, tmp_path):
    with pytest.raises(ModelError, match="cannot write opset 99; give a lower one with --opset or --int8_opset"):
        run_export(words(folder, "odd", *of_task(folder), "--format", "onnx", "--precision", "fp32", "--opset", "99"))
    assert not (folder / "odd").exists()
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"model\.onnx cannot be opened by the installed runtime: .*--int8_opset"):
        export.open_export("onnx", tmp_path / "model.onnx", 1)


def test_mistakes_are_told_together_before_any_work(folder, tmp_path, monkeypatch):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine").touch()
    monkeypatch.setattr(export, "missing_packages", lambda formats: ["onnxruntime"])
    with pytest.raises(ConfigError) as error:
        export.main(["--model", str(tmp_path / "gone"), "--output_dir", str(tmp_path / "foreign"), "--split", "dev"])
    (tmp_path / "foreign" / "mine").rename(tmp_path / "foreign" / ".exporting-left")
    arguments, _ = parse_arguments(ExportModelArguments, words(folder, str(tmp_path / "foreign")))
    assert "foreign" not in "".join(export.path_problems(arguments))
    arguments, _ = parse_arguments(ExportModelArguments, words(folder, "\udcff"))
    problem = list(export.path_problems(arguments))[-1]
    assert "holds bytes that are no text" in problem
    for part in (
        "gone is not a directory",
        "onnxruntime not installed; `bash launchers/install.sh export`",
        "holds files that are no export",
        "--precision int8 needs the task",
        "--split is one of a task's",
    ):
        assert part in str(error.value)


def test_without_a_network_the_hub_is_told_of_before_any_work(folder, monkeypatch):
    monkeypatch.setattr(export, "join", lambda log_level: World(0, 1, 0, torch.device("cpu")))
    more = ["--precision", "fp32", "--push_to_hub", "someone/something"]
    with pytest.raises(
        ModelError, match=r"--push_to_hub someone/something: the hub cannot be reached .*no work was begun"
    ):
        export.main(words(folder, "pushed", *more))
    assert not (folder / "pushed").exists()
