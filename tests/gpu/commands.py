"""The commands as users run them, on tiny models: general distillation in each way, and the other stages."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.gpu.step import Check

ROOT = Path(__file__).resolve().parents[2]
NOT_RECORDED, RECORDED = "no CUDA graphs any more", "recorded a shape of batch"  # what tinybert_ds.engine.graphs says


class Ended(NamedTuple):
    """What is said of a command."""

    name: str
    passed: bool
    text: str


def slug(name: str) -> str:
    """Return a name as a folder's."""
    return name.replace(" ", "_")


def run_command(name: str, words: Sequence[object], *, records: bool = False) -> Ended:
    """Run a command of the checkout; say what it printed last, or about graphs, of one that fails.

    Args:
        records: Whether its steps must have been recorded as CUDA graphs.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    begin = time.monotonic()
    finished = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    text = f"{time.monotonic() - begin:.0f} s"
    refused = [line for line in finished.stdout.splitlines() if NOT_RECORDED in line]
    if finished.returncode or refused or (records and RECORDED not in finished.stdout):
        return Ended(f"command, {name}", False, "; ".join(refused) or finished.stdout[-1500:])
    return Ended(f"command, {name}", True, text)


def part_commands(check: Check) -> None:
    """General distillation as users run it: to an end, again, further, and under other configs."""
    from tests.support.models import config_directory, model_directory  # noqa: PLC0415
    from tests.support.runs import write_documents  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp())
    model_directory(folder / "teacher", num_attention_heads=12, hidden_size=96)
    config_directory(folder / "student", num_attention_heads=12, hidden_size=24)
    write_documents(folder / "corpus.txt", documents=60)
    shards = ["data_tools/pregenerate_training_data.py", "--train_corpus", folder / "corpus.txt"]
    shards += ["--bert_model", folder / "teacher", "--output_dir", folder / "shards"]
    check.say(*run_command("shards", shards))
    base = ["launchers/general_distill.py", "--pregenerated_data", folder / "shards", "--teacher_model"]
    base += [folder / "teacher", "--student_model", folder / "student", "--max_seq_length", 64, "--init", "random"]
    base += ["--train_batch_size", 16, "--learning_rate", 1e-3, "--save_steps", 10, "--logging_steps", 5]
    base += ["--log_level", "debug"]
    kinds: dict[str, list[object]] = {}
    if not check.dry:
        kinds = {"no graphs": ["--cuda_graphs", "off"], "overlap": ["--overlap_teacher"], "fp16": ["--fp16"]}
        kinds["compiled"] = ["--compile"]
        names = ("zero1_bf16", "zero2_offload_bf16", "zero3_bf16")
        kinds |= {name: ["--deepspeed_config", ROOT / f"ds_configs/{name}.json"] for name in names}

    def to_an_end_and_further() -> list[Ended]:
        return [
            run_command(name, [*base, "--output_dir", folder / "a", "--max_steps", steps], records=not check.dry)
            for name, steps in {"20 steps": 20, "40 steps from there": 40}.items()
        ]

    with ThreadPoolExecutor(1 + len(kinds)) as pool:  # most of a run is its start
        chain = pool.submit(to_an_end_and_further)
        others = [
            pool.submit(run_command, name, [*base, *words, "--output_dir", folder / slug(name), "--max_steps", 10])
            for name, words in kinds.items()
        ]
        for ended in [*chain.result(), *(one.result() for one in others)]:
            check.say(*ended)


def part_stages(check: Check) -> None:
    """The road of a task with a start from the teacher, vectors, masked words for augmentation, and Muon."""
    from tests.support.models import config_directory, masked_lm_directory, model_directory  # noqa: PLC0415
    from tests.support.runs import write_documents, write_sentiment  # noqa: PLC0415
    from tests.support.sentences import random_texts, sentence_directory, write_sts  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp())
    wide = {"num_attention_heads": 12, "hidden_size": 96}
    model_directory(folder / "teacher", **wide)
    masked_lm_directory(folder / "masked", **wide)
    sentence_directory(folder / "encoder", width=20, **wide)
    student = config_directory(folder / "student", num_attention_heads=12, hidden_size=24)
    write_documents(folder / "corpus.txt", documents=60)
    write_sentiment(folder / "task", rows=60)
    (folder / "texts.txt").write_text("\n".join(random_texts(60)) + "\n")
    write_sts(folder / "dev.tsv", pairs=12)
    task = ["--data_dir", folder / "task", "--task_name", "sst-2"]
    short = ["--max_steps", 6, "--logging_steps", 2, "--learning_rate", 1e-3, "--train_batch_size", 16]
    models = ["--teacher_model", folder / "fine", "--student_model"]
    start = ["launchers/inherit_student.py", *models, student, *task, "--output_dir", folder / "start"]
    joint = ["launchers/task_distill.py", "--joint", *models, folder / "start", *task, *short, "--save_steps", 3]
    evaluation = ["launchers/task_distill.py", "--do_eval", "--student_model", folder / "joint", *task]
    shards = ["data_tools/pregenerate_training_data.py", "--train_corpus", folder / "corpus.txt", "--output_dir"]
    general = ["launchers/general_distill.py", "--pregenerated_data", folder / "shards", "--max_seq_length", 64]
    general += ["--teacher_model", folder / "teacher", "--student_model", student, *short, "--calibration_tokens", 2000]
    embed = ["launchers/embed_distill.py", "--teacher_model", folder / "encoder", "--student_model", student]
    embed += ["--texts", folder / "texts.txt", "--sts", folder / "dev.tsv", *short, "--output_dir", folder / "vectors"]
    judge = ["launchers/embed_evaluate.py", "--model", folder / "vectors", "--sts", folder / "dev.tsv"]
    masks = ["data_tools/data_augmentation.py", "--pretrained_bert_model", folder / "masked", "--no_glove", *task]
    finetuning = ["launchers/finetune_teacher.py", "--model", folder / "teacher", *task, *short]
    muon = ["--deepspeed_config", ROOT / "ds_configs/zero0_muon_autocast_bf16.json", "--init", "random"]
    check.say(*run_command("shards", [*shards, folder / "shards", "--bert_model", folder / "teacher"]))
    chains: list[dict[str, list[object]]] = [
        {"augmentation": masks},
        {"vectors": embed, "their evaluation": [*judge, "--output_dir", folder / "scores"]},
        {"relations": [*general, "--attention_loss", "relations_kl", "--output_dir", folder / "relations"]},
        {"start from the teacher": [*general, "--output_dir", folder / "general"]},
        {"Muon": [*general, *muon, "--output_dir", folder / "muon"]},
        {
            "fine-tuning": [*finetuning, "--output_dir", folder / "fine"],
            "start of a task": start,
            "joint stage": [*joint, "--output_dir", folder / "joint"],
            "evaluation": [*evaluation, "--output_dir", folder / "judged"],
        },
    ]
    if check.dry:
        del chains[1:]

    def run(chain: dict[str, list[object]]) -> list[Ended]:
        ended: list[Ended] = []
        for name, words in chain.items():
            ended.append(run_command(name, words))
            if not ended[-1].passed:
                break  # what comes after it needs its output
        return ended

    with ThreadPoolExecutor(len(chains)) as pool:
        for chain in pool.map(run, chains):
            for ended in chain:
                check.say(*ended)
