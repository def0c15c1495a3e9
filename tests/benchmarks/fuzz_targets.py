"""What `fuzz.py` damages: files that our own commands have made, and what the commands read them with."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launchers.run_stage import read_stages as read_own_stages
from tests.benchmarks.fault_campaign import make_inputs
from tests.benchmarks.fuzz_tables import make_tables, table_targets
from tests.benchmarks.fuzzed_file import Target
from tests.benchmarks.mutations import damage_bytes, damage_json, damage_json_lines, damage_numbers, damage_words
from tests.support.runs import run_ranks
from tinybert_ds.arguments import GeneralDistillArguments, TaskDistillArguments, TrainingArguments, parse_arguments
from tinybert_ds.arguments.recipes import PAPER
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import manifest_text, read_manifest
from tinybert_ds.data.task_yaml import load_task_file
from tinybert_ds.data.verification import Verification
from tinybert_ds.engine.checkpoints.ownership import require_own_files
from tinybert_ds.engine.checkpoints.store import complete_tags, find_damage, read_layout
from tinybert_ds.engine.ds_config import CONFIG_DIRECTORY, read_config, resolve_config
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.engine.watch.monitor import truncate_metrics
from tinybert_ds.errors import CheckpointError, raise_all
from tinybert_ds.launch import rank
from tinybert_ds.launch.environment import read_own_environment_file
from tinybert_ds.launch.hostfile import read_hostfile
from tinybert_ds.launch.remote import errand_command
from tinybert_ds.report.markdown import render_markdown
from tinybert_ds.report.page import render_page
from tinybert_ds.report.runs import read_runs
from tinybert_ds.stages.compare import read_stages

BYTES_AND_NUMBERS = (damage_bytes, damage_numbers)
BYTES_AND_VALUES = (damage_bytes, damage_json)
WORDS = (damage_bytes, damage_words)
ECHO = "#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n"
REMOTE_WORDS = (
    "tinybert_ds.doctor",
    "R&D/teacher",
    "shards(v2)",
    "it's",
    "#t",
    "$HOME",
    "*",
    "",
    '"',
    "two\nlines",
    "~",
    "é",
)
TASK_FILE = """\
name: verdicts
files: {train: train.tsv, dev: dev.tsv, test: "test.tsv"}
text: [review, 'reply']
label: verdict
labels: [reject, accept]
aliases: {no: reject, yes: accept}
metric: [accuracy, f1]
max_seq_length: 64
"""


@dataclasses.dataclass(frozen=True)
class Files:
    """Where everything is."""

    folder: Path
    words: tuple[str, ...]  # of the training command

    @property
    def shards(self) -> Path:
        """The corpus."""
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        """The output of training."""
        return self.folder / "out"


def make_files(folder: Path) -> Files:
    """Run the commands and write the files that a user writes by hand."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        words = [*make_inputs(folder), "--max_steps", 6, "--save_steps", 2, "--save_total_limit", 2]
    config = folder / "deepspeed.json"
    shutil.copy(CONFIG_DIRECTORY / "zero1_bf16.json", config)
    words += ["--pregenerated_data", folder / "shards", "--output_dir", folder / "out", "--deepspeed_config", config]
    run_ranks("general_distill", words, log=folder / "log").check()
    shutil.copy(PAPER, folder / "recipe.yaml")
    (folder / "task.yaml").write_text(TASK_FILE, encoding="utf-8")
    (folder / "hostfile").write_text(
        "# ours\nnode1 slots=8\nnode2.example.org slots=8 # the new one\n", encoding="utf-8"
    )
    (folder / "environment").write_text("NCCL_DEBUG=INFO\nHF_HOME=/models\nOMP_NUM_THREADS=4\n", encoding="utf-8")
    (folder / "words").write_bytes("\0".join(REMOTE_WORDS).encode())
    (folder / "rank").write_text(rank.pack(rank_of(REMOTE_WORDS)), encoding="ascii")
    make_tables(folder / "tables")
    stages = [{"name": f"stage {n}", "seconds": 1.5, "finished": True, "command": ["python", "x.py"]} for n in (1, 2)]
    (folder / "stages.json").write_text(json.dumps(stages), encoding="utf-8")
    (folder / "python").write_text(ECHO, encoding="utf-8")
    (folder / "python").chmod(0o755)
    return Files(folder, tuple(map(str, words)))


def make_targets(files: Files) -> Mapping[str, Callable[[], Target]]:
    """Return the targets by name; a target reads its whole file when it is made."""
    shards, run, folder = files.shards, files.run, files.folder
    inspect = ("data_tools/inspect_shards.py", shards, "--decode", 2, "--verify")
    report = ("-m", "tinybert_ds.report", run, "--output_dir", folder / "report")
    train = ("launchers/general_distill.py", *files.words)
    recipe = ("task_distill", *_task_words(files))
    record = run / "checkpoints" / complete_tags(run / "checkpoints")[-1] / "complete.json"
    state = max((path for path in record.parent.rglob("*.pt")), key=lambda path: path.stat().st_size)
    identity = json.loads((run / "run.json").read_text())["identity"]
    shutil.rmtree(shards / "counts")
    read_corpus(files)  # which keeps the counts of samples
    (counts,) = (shards / "counts").glob("*.counts")

    def whole_corpus() -> Any:
        manifest = json.loads(manifest_text(read_manifest(shards)))
        return read_corpus(files), json.dumps(manifest, sort_keys=True)

    def corpus() -> Any:
        return read_corpus(files)

    def a_run() -> Any:
        return read_run(files, identity)

    def checkpoint() -> Any:
        return read_checkpoint(record)

    index = shards / "shard-00000-00000.idx"
    return {
        "index": lambda: Target(index, corpus, BYTES_AND_NUMBERS, unseen=True, command=inspect),
        "tokens": lambda: Target(
            index.with_suffix(".bin"), lambda: verify(files), BYTES_AND_NUMBERS, unseen=True, command=inspect
        ),
        "manifest": lambda: Target(
            shards / "manifest.json", whole_corpus, BYTES_AND_VALUES, unseen=True, command=inspect
        ),
        "corpus's tokeniser": lambda: Target(
            shards / "tokenizer.json", corpus, BYTES_AND_VALUES, unseen=True, command=inspect
        ),
        "kept counts": lambda: Target(counts, corpus, BYTES_AND_NUMBERS, unseen=True),
        "run.json": lambda: Target(run / "run.json", a_run, BYTES_AND_VALUES, command=report),
        "metrics.jsonl": lambda: Target(
            run / "metrics.jsonl", lambda: read_metrics(files), (damage_bytes, damage_json_lines), command=report
        ),
        "complete.json": lambda: Target(record, checkpoint, BYTES_AND_VALUES, unseen=True),
        "checkpoint's state": lambda: Target(state, checkpoint, BYTES_AND_NUMBERS, unseen=True),
        "stages.json": lambda: Target(folder / "stages.json", lambda: stages(files), BYTES_AND_VALUES),
        "DeepSpeed JSON": lambda: Target(
            folder / "deepspeed.json", lambda: deepspeed_config(files), BYTES_AND_VALUES, command=train
        ),
        "recipe YAML": lambda: Target(
            folder / "recipe.yaml", lambda: read_recipe(files), WORDS, command=("-m", "tinybert_ds.arguments", *recipe)
        ),
        "task YAML": lambda: Target(folder / "task.yaml", lambda: load_task_file(folder / "task.yaml"), WORDS),
        "hostfile": lambda: Target(folder / "hostfile", lambda: read_hostfile(folder / "hostfile"), WORDS),
        "environment file": lambda: Target(
            folder / "environment", lambda: read_own_environment_file(folder / "environment"), WORDS
        ),
        "launch words": lambda: Target(folder / "words", lambda: echo(files), WORDS, unseen=True),
        "rank's command": lambda: Target(folder / "rank", lambda: read_rank(files), (damage_bytes,), unseen=True),
        **table_targets(folder / "tables"),
    }


def read_corpus(files: Files) -> list[Any]:
    """Return the batches of an epoch, and what whole words are masked by."""
    source = CorpusSource(
        files.shards,
        split="train",
        eval_fraction=0.1,
        global_batch_size=16,
        max_seq_length=64,
        seed=1,
        masked_lm_prob=0.15,
        whole_word=True,
    )
    steps = range(source.steps_in_epoch(0))
    batches = [source.micro_batches(0, step, rank=0, world_size=1, accumulation=1)[0] for step in steps]
    return [
        [np.asarray(column).tobytes() for column in (batch.input_ids, batch.token_type_ids, batch.sample_ids)]
        for batch in batches
    ]


def verify(files: Files) -> Any:
    """Return the batches, read beside `--verify_data`."""
    checks = Verification([files.shards])
    batches = read_corpus(files)
    checks.progress(within=60)
    checks.check()
    return batches


def read_run(files: Files, identity: Mapping[str, Any]) -> Any:
    """Return what a run that goes on, and a report, take from run.json."""
    directory = RunDirectory(files.run)
    pages = read_report(files)
    directory.verify(dict(identity), resume="auto", whole=False)
    stated = str(files.run / "checkpoints" / complete_tags(files.run / "checkpoints")[0])
    return pages, directory.record(), directory.resolve_resume(stated), directory.finished_results(6)


def read_report(files: Files) -> Any:
    """Return the pages of the report."""
    runs = read_runs([files.run])
    return render_page(runs), render_markdown(runs)


def read_metrics(files: Files) -> Any:
    """Return what a report, and a run that goes on from step 4, take from metrics.jsonl."""
    pages = read_report(files)
    truncate_metrics(files.run / "metrics.jsonl", 4)
    return pages, (files.run / "metrics.jsonl").read_bytes()


def read_checkpoint(record: Path) -> Any:
    """Return what is loaded of the newest checkpoint; raises CheckpointError where the one before is taken."""
    directory = record.parent
    if directory.name not in complete_tags(directory.parent):
        raise CheckpointError(f"{directory} is passed over")
    if damage := find_damage(directory):
        raise CheckpointError(damage)
    require_own_files(directory, record.name)
    files = {path.name: path.stat().st_size for path in directory.iterdir() if path != record}
    return read_layout(directory), sorted(files.items())


def stages(files: Files) -> Any:
    """Return what the two commands take that read the stages of a chain."""
    path = files.folder / "stages.json"
    return read_own_stages(path), read_stages(path)


def deepspeed_config(files: Files) -> Any:
    """Return the config that a run would be started with."""
    arguments, _ = parse_arguments(GeneralDistillArguments, list(files.words), "general_distill.py")
    assert isinstance(arguments, TrainingArguments)
    config, problems = read_config(files.folder / "deepspeed.json")
    config, more = resolve_config(config, arguments, world_size=1, device_type="cpu")
    raise_all(problems + more)
    return config


def read_recipe(files: Files) -> Any:
    """Return the arguments of a command with a recipe."""
    arguments, problems = parse_arguments(TaskDistillArguments, _task_words(files), "task_distill.py")
    raise_all(problems)
    return arguments


def _task_words(files: Files) -> list[str]:
    words = {"teacher_model": "t", "student_model": "s", "data_dir": "d", "task_name": "mrpc", "output_dir": "o"}
    return [
        *(word for name, value in words.items() for word in (f"--{name}", value)),
        "--recipe",
        str(files.folder / "recipe.yaml"),
    ]


def echo(files: Files) -> str:
    """Send words to another host, as an errand and as a rank's command; return how they arrive: a shell parses them."""
    words = [os.fsdecode(word) for word in (files.folder / "words").read_bytes().split(b"\0")]
    here, sys.executable = sys.executable, str(files.folder / "python")
    try:
        command = errand_command("faraway", words)
    finally:
        sys.executable = here
    arrived = _as_a_shell_reads(os.fsencode(command[-1]))
    (packed,) = _as_a_shell_reads(b"%b %b" % (os.fsencode(files.folder / "python"), rank.pack(rank_of(words)).encode()))
    same = arrived == ["-m", *words] and rank.unpack(packed) == rank_of(words)
    return "as they were given" if same else f"{arrived} and {rank.unpack(packed)} instead of {words}"


def rank_of(words: Sequence[str]) -> rank.RankCommand:
    """Return a rank's command whose arguments, directory and variables are these words."""
    return rank.RankCommand(words, words[0], {str(number): word for number, word in enumerate(words)})


def read_rank(files: Files) -> rank.RankCommand:
    """Return the command that a rank's variable holds."""
    return rank.unpack(os.fsdecode((files.folder / "rank").read_bytes()))


def _as_a_shell_reads(command: bytes) -> list[str]:
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]
