"""The export of models that give tags, any number of labels, scores of pairs and vectors: what their files say in a
fresh process, with the runtime's own loader, is what was reported."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from tests.support.models import model_directory
from tests.support.sentences import random_texts, sentence_directory, write_sts
from tests.unit.stages.test_export import ALONE, no_ranks, run_export
from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.compare import CompareArguments
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.errors import ConfigError, DataError, ModelError
from tinybert_ds.models.labels import HeadKind
from tinybert_ds.models.pretrained import load_classifier
from tinybert_ds.models.saving import save_student
from tinybert_ds.stages import compare, export

pytestmark = pytest.mark.slow  # a graph is traced, written, optimised and measured

SIZES = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 32}
OPENER = """
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer
folder, file, rows = sys.argv[1:]
session = onnxruntime.InferenceSession(f"{folder}/{file}", providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
config = json.load(open(f"{folder}/config.json"))
def run(found, output="logits"):
    feed = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
    feed = {name: np.array([ids], dtype=np.int64) for name, ids in feed.items()}
    return session.run([output], {x.name: feed[x.name] for x in session.get_inputs()})[0][0]
"""
ENTITY_F1 = """
from seqeval.metrics import f1_score
gold, said = [], []
for block in open(rows).read().strip().split("\\n\\n"):
    words, tags = zip(*(line.split("\\t") for line in block.split("\\n")))
    found = tokenizer.encode(list(words), is_pretokenized=True)
    best = run(found).argmax(-1)
    firsts = [found.word_ids.index(number) for number in range(len(words))]
    gold.append(list(tags))
    said.append([config["id2label"][str(best[at])] for at in firsts])
print(f1_score(gold, said))
"""
MICRO_F1 = """
from sklearn.metrics import f1_score
names = [config["id2label"][str(n)] for n in range(len(config["id2label"]))]
gold, said = [], []
for row in map(json.loads, open(rows)):
    logits = run(tokenizer.encode(row["text"])).astype(np.float64)
    said.append(1 / (1 + np.exp(-logits)) >= config["thresholds"])
    gold.append([name in row["labels"] for name in names])
print(f1_score(gold, said, average="micro"))
"""
NDCG = """
queries = {}
for line in open(rows).read().splitlines()[1:]:
    query_id, query, passage, relevance = line.split("\\t")
    queries.setdefault(query_id, []).append((float(run(tokenizer.encode(query, passage))[0]), int(relevance)))
def gain(relevances):
    return sum(value / np.log2(place + 2) for place, value in enumerate(relevances[:10]))
print(np.mean([
    gain([r for _, r in sorted(found, key=lambda pair: -pair[0])]) / gain(sorted((r for _, r in found), reverse=True))
    for found in queries.values()
]))
"""
SPEARMAN = """
from scipy.stats import spearmanr
prompts = json.load(open(f"{folder}/config_sentence_transformers.json"))
prompt = prompts["prompts"].get(prompts["default_prompt_name"], "")
tokenizer.enable_truncation(json.load(open(f"{folder}/sentence_bert_config.json"))["max_seq_length"])
pairs = [line.rstrip("\\n").split("\\t") for line in open(rows)][1:]
vectors = [[run(tokenizer.encode(prompt + text), "sentence_embedding") for text in pair[1:3]] for pair in pairs]
np.save(f"{folder}/vectors.npy", np.array(vectors))
print(spearmanr([float(a @ b) for a, b in vectors], [float(pair[3]) for pair in pairs])[0])
"""

BACKEND = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
how = {"backend": "onnx", "device": "cpu", "model_kwargs": {"file_name": "onnx/model.onnx"}}
np.save(sys.argv[2], SentenceTransformer(sys.argv[1], **how).encode(open(sys.argv[3]).read().splitlines()))
"""


def repeated(figure: str, out: Path, file: str, rows: Path) -> float:
    """The figure as a fresh process finds it that knows nothing of this program."""
    command = [sys.executable, "-c", OPENER + figure, str(out), file, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def student(folder: Path, names: tuple[str, ...] | None, kind: HeadKind = "one", *, seed: int = 0) -> None:
    """Write a random student with a head of a kind."""
    plain = model_directory(folder / "plain", seed=seed, **SIZES)
    model = load_classifier(plain, label_names=names, role="student", kind=kind, seed=seed)
    for parameter in (model.qa_outputs if kind == "spans" else model.classifier).parameters():
        parameter.data.mul_(30)  # so that its answers differ
    save_student(model, load_tokenizer(plain, None), folder / "student")


def exported(folder: Path, *more: object) -> dict[str, dict]:
    """Export the student and return the rows of the report by name."""
    given = ["--model", folder / "student", "--output_dir", folder / "out", "--threads", 1, "--max_loss", 0.2]
    words = [*given, "--format", "onnx", *more]
    if "--sts" not in more:
        words += ["--data_dir", folder, "--task_file", folder / "task.yaml"]
    run_export([str(word) for word in words])
    return {row["name"]: row for row in json.loads((folder / "out" / "report.json").read_text())["exports"]}


def offer(folder: Path) -> tuple[str, set[str]]:
    """What the card says that the model does, and its metrics."""
    data = ModelCard.load(folder / "out" / "README.md").data
    return data.pipeline_tag, {result.metric_type for result in data.eval_results}


def write_tagged(file: Path, *, sentences: int, longest: int) -> None:
    rng, lines = random.Random(0), []
    for _ in range(sentences):
        for word in rng.choices(["the", "was", "city", "river", "seen"], k=rng.randint(2, longest)):
            lines.append(f"{word}\t{'B-PLACE' if word in ('city', 'river') else 'O'}\n")
        lines.append("\n")
    file.write_text("".join(lines))


def test_tags_of_each_token_are_in_the_graph_and_judged_by_entities(tmp_path):
    write_tagged(tmp_path / "dev.conll", sentences=24, longest=12)
    write_tagged(tmp_path / "long.conll", sentences=8, longest=40)
    (tmp_path / "task.yaml").write_text(
        "target: tags\nfiles: {train: dev.conll, dev: dev.conll, test: long.conll}\ntext: 0\nlabel: -1\nscheme: BIO\n"
        "labels: [PLACE]\nmetric: entity_f1\nmax_seq_length: 16\n"
    )
    student(tmp_path, ("O", "B-PLACE", "I-PLACE"), "tokens")
    rows = exported(tmp_path, "--max_seq_length", 64)
    assert rows["ONNX fp32"]["metric"] == rows["torch fp32"]["metric"] > 0.1
    assert rows["ONNX fp32"]["largest_difference"] < 1e-4
    whole = repeated(ENTITY_F1, tmp_path / "out", "onnx/model.onnx", tmp_path / "dev.conll")
    assert whole == pytest.approx(rows["ONNX fp32"]["metric"])
    assert offer(tmp_path) == ("token-classification", {"entity_f1"})
    given = ["--teacher", tmp_path, "--student", tmp_path / "student", "--output_dir", tmp_path, "--split", "test"]
    given += ["--data_dir", tmp_path, "--task_file", tmp_path / "task.yaml"]
    arguments, _ = parse_arguments(CompareArguments, list(map(str, given)))
    spec = load_task_file(tmp_path / "task.yaml")
    with no_ranks():  # in windows of 16 tokens, of which each word is answered by one
        candidate, metric = compare.measure_metric("student", tmp_path / "student", spec, arguments, ALONE)
        (_, found), _ = compare.measure_exported(tmp_path / "out", 0, spec, arguments, ALONE)
    assert len(candidate.encoded) > 8
    assert found == metric > 0.1


@pytest.mark.exhaustive
def test_without_a_task_the_tags_of_noise_are_compared(tmp_path):
    student(tmp_path, ("O", "B-PLACE", "I-PLACE"), "tokens")
    words = ["--model", tmp_path / "student", "--output_dir", tmp_path / "out", "--format", "onnx"]
    run_export([str(word) for word in [*words, "--precision", "fp32", "--max_seq_length", 40]])
    row = json.loads((tmp_path / "out" / "report.json").read_text())["exports"][1]
    assert (row["metric"], row["agreement"]) == (None, 1)


@pytest.mark.exhaustive  # the graph is that of one label
def test_several_labels_are_judged_by_thresholds_which_the_directory_holds(tmp_path):
    rng, words = random.Random(0), random_texts(60)
    for name in ("train", "dev"):
        picked = [{"text": text, "labels": rng.sample(["a", "b", "c"], k=rng.randint(0, 3))} for text in words]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in picked))
    (tmp_path / "task.yaml").write_text(
        "target: multi_label\nfiles: {train: train.jsonl, dev: dev.jsonl}\ntext: text\nlabel: labels\n"
        "labels: [a, b, c]\nmetric: micro_f1\n"
    )
    student(tmp_path, ("c", "a", "b"), "several")  # not in the order of the task
    rows = exported(tmp_path)
    assert rows["ONNX fp32"]["metric"] == rows["torch fp32"]["metric"] > 0.3
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["thresholds"]) == 3
    whole = repeated(MICRO_F1, tmp_path / "out", "onnx/model.onnx", tmp_path / "dev.jsonl")
    assert whole == pytest.approx(rows["ONNX fp32"]["metric"])
    assert offer(tmp_path) == ("text-classification", {"micro_f1"})


def test_a_reranker_is_judged_within_its_queries(tmp_path):
    rng, texts = random.Random(0), random_texts(80)
    lines = ["query_id\tquery\tpassage\trelevance"]
    lines += [f"q{n // 8}\t{texts[n // 8]}\t{texts[n]}\t{rng.randint(0, 2)}" for n in range(80)]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "task.yaml").write_text(
        "target: scores\nfiles: {train: rows.tsv, dev: rows.tsv}\ntext: [query, passage]\nlabel: relevance\n"
        "group: query_id\nmetric: ndcg_10\nmax_seq_length: 64\n"
    )
    student(tmp_path, None)
    rows = exported(tmp_path)
    assert 0.3 < rows["ONNX fp32"]["metric"] < 1
    assert rows["ONNX fp32"]["metric"] == pytest.approx(rows["torch fp32"]["metric"])
    whole = repeated(NDCG, tmp_path / "out", "onnx/model.onnx", tmp_path / "rows.tsv")
    assert whole == pytest.approx(rows["ONNX fp32"]["metric"], abs=1e-3)
    assert offer(tmp_path) == ("text-ranking", {"ndcg_10"})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A sentence encoder with all kinds of modules and a prompt, scored pairs and texts."""
    folder = tmp_path_factory.mktemp("encoder")
    prompts = {"query": "we saw : "}
    how = {"pooling": ("mean", "cls"), "width": 20, "prompts": prompts, "default_prompt": "query", "max_seq_length": 12}
    sentence_directory(folder / "student", **how, **SIZES)
    write_sts(folder / "dev.tsv", pairs=40)
    (folder / "texts.txt").write_text("\n".join(random_texts(60, seed=3)) + "\n")
    return folder


def test_the_vectors_of_an_exported_sentence_encoder_are_those_of_its_library(encoder):
    texts = ["--sts", encoder / "dev.tsv", "--texts", encoder / "texts.txt", "--calibration_rows", 8]
    rows = exported(encoder, *texts)
    assert rows["ONNX fp32"]["largest_difference"] < 1e-5
    assert rows["ONNX fp32"]["agreement"] == pytest.approx(1, abs=1e-6)
    assert 1 > rows["ONNX int8 dynamic"]["agreement"] > 0.9
    out = encoder / "out"
    for file, name in (("model.onnx", "ONNX fp32"), ("model_quantized.onnx", "ONNX int8 dynamic")):
        found = repeated(SPEARMAN, out, f"onnx/{file}", encoder / "dev.tsv")
        assert found == pytest.approx(rows[name]["metric"], abs=0.03)  # pairs that are alike; batches scale together
        vectors = np.load(out / "vectors.npy")
        pairs = [line.split("\t")[1:3] for line in (encoder / "dev.tsv").read_text().splitlines()[1:]]
        library = SentenceTransformer(str(encoder / "student"), device="cpu")
        wanted = np.stack([library.encode([pair[side] for pair in pairs]) for side in (0, 1)], axis=1)
        np.testing.assert_allclose(vectors, wanted, atol=1e-5 if file == "model.onnx" else 0.2)
    assert offer(encoder) == ("sentence-similarity", {"spearman"})


@pytest.mark.skipif("OPTIMUM_PATH" not in os.environ, reason="needs optimum-onnx in OPTIMUM_PATH")
def test_sentence_transformers_own_onnx_backend_opens_the_directory_with_the_same_vectors(tmp_path):
    """It loads by optimum-onnx; `pip install --no-deps --target $OPTIMUM_PATH` what launchers/README.md lists."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(random_texts(60, seed=3)) + "\n")
    sentence_directory(tmp_path / "student", width=20, **SIZES)
    write_sts(tmp_path / "dev.tsv", pairs=8)
    exported(tmp_path, "--sts", tmp_path / "dev.tsv", "--precision", "fp32")
    command = [sys.executable, "-c", BACKEND, str(tmp_path / "out"), str(tmp_path / "found.npy"), str(texts)]
    environment = {**os.environ, "PYTHONPATH": os.environ["OPTIMUM_PATH"], "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    wanted = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(texts.read_text().splitlines())
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=1e-5)


def test_a_length_that_a_directory_leaves_to_others_is_stated_in_its_export(tmp_path):
    def loaded(*more: str, role: str = "model"):
        words = ["--model", str(tmp_path), "--output_dir", "o", "--precision", "fp32", *more]
        arguments, _ = parse_arguments(export.ExportModelArguments, words)
        return export.load_vector_subject(str(tmp_path), arguments, ALONE, role=role)

    sentence_directory(tmp_path, max_seq_length=None, **SIZES)
    assert loaded().modules.max_seq_length == 64
    assert loaded("--max_seq_length", "40").layout.max_seq_length == 40
    with pytest.raises(ConfigError, match=r"--max_seq_length 65: .* cuts texts to 64 tokens"):
        loaded("--max_seq_length", "65")
    assert loaded("--max_seq_length", "65", role="teacher").layout.max_seq_length == 64


def test_what_is_no_sentence_encoder_takes_no_texts_and_the_other_way_round(encoder, tmp_path):
    student(tmp_path, None)
    words = ["--output_dir", str(tmp_path / "out"), "--precision", "fp32", "--sts", str(encoder / "dev.tsv")]
    with pytest.raises(ConfigError, match=r"--sts is for sentence encoders, and .* has a head \(BertForSequenceCl"):
        run_export(["--model", str(tmp_path / "student"), *words])
    both = ["--model", str(encoder / "student"), "--teacher", str(tmp_path / "student"), *words]
    with pytest.raises(ConfigError, match=r"--teacher .* has a head \(BertForSequenceCl.*; give a sentence"):
        run_export(both)
    with pytest.raises(DataError, match=r"--sts .*gone\.tsv does not exist"):
        run_export(["--model", str(encoder / "student"), *words[:-1], str(tmp_path / "gone.tsv")])
    modules = sentence_directory(tmp_path / "odd", **SIZES) / "modules.json"
    modules.write_text(modules.read_text().replace("models.Normalize", "models.CNN"))
    with pytest.raises(ModelError, match="has the module CNN, which is not understood"):
        run_export(["--model", str(tmp_path / "odd"), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sts", "a.tsv", "--data_dir", "d", "--task_name", "rte"], "--sts is for sentence encoders, which have no"),
        (["--sts", "a.tsv", "--texts", "b.txt"], "--texts is for int8 and, without --sts, for the comparison"),
        (["--text_column", "b"], "--text_column is for --texts; leave it out"),
        (["--sts_columns", "a", "b", "c"], "--sts_columns is for --sts; leave it out"),
        (["--sts", "a.tsv", "--sts_columns", "a", "b"], "--sts_columns are ['a', 'b']; give three"),
    ],
)
def test_flags_of_sentence_encoders_that_nobody_reads_are_refused(words, told):
    _, (problem,) = parse_arguments(
        export.ExportModelArguments, ["--model", "m", "--output_dir", "o", "--precision", "fp32", *words]
    )
    assert problem.startswith(told)
