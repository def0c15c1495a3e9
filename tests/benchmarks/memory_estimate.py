"""The doctor's estimate of a rank's memory against the peak of a run.

    python tests/benchmarks/memory_estimate.py [--rows 8 16 32] [--tokens 128]

General distillation on one CPU rank in fp32, a teacher of 6 layers and width 768, a student of 3 layers and width 312,
rows all of one length, two steps. Writes results/memory.csv and prints a line for each run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_tools import prepare_corpus
from tests.benchmarks.measurement import RESULTS, write_csv
from tests.support.models import config_directory, model_directory
from tests.support.runs import ROOT, write_documents
from tinybert_ds.doctor.memory import Job, Precision, estimate
from tinybert_ds.doctor.sizes import size_of
from tinybert_ds.models.pretrained import read_config

MEASURED_RUN = """
import resource, sys
from tinybert_ds.stages.entry import prepare, run
sys.argv[0] = "general_distill.py"
prepare()
from tinybert_ds.stages.general_distill import main
run(main)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class MemoryRow(NamedTuple):
    """One run."""

    rows: int
    tokens: int
    measured_mib: int
    estimated_mib: int
    ratio: float


def measure(folder: Path, rows: int, tokens: int) -> int:
    """Return the peak resident bytes of a run with micro-batches of `rows` x `tokens`."""
    words = [sys.executable, "-c", MEASURED_RUN, "--pregenerated_data", folder / "shards"]
    words += ["--teacher_model", folder / "teacher", "--student_model", folder / "student", "--padding", "reference"]
    words += ["--train_batch_size", rows, "--max_seq_length", tokens, "--max_steps", 2, "--eval_fraction", 0]
    words += ["--teacher_dtype", "fp32", "--output_dir", folder / f"out_{rows}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [str(word) for word in words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(finished.stdout.split()[-1]) * 1024  # Linux counts in KiB


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--tokens", type=int, default=128)
    values = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"num_attention_heads": 12, "max_position_embeddings": values.tokens}
        model_directory(folder / "teacher", num_hidden_layers=6, hidden_size=768, intermediate_size=3072, **sizes)
        config_directory(folder / "student", num_hidden_layers=3, hidden_size=312, intermediate_size=1200, **sizes)
        write_documents(folder / "corpus.txt", documents=200)
        words = ["--train_corpus", folder / "corpus.txt", "--bert_model", folder / "teacher"]
        prepare_corpus.main([str(word) for word in (*words, "--output_dir", folder / "shards")])
        teacher, student = (size_of(read_config(folder / role, role=role)) for role in ("teacher", "student"))
        for rows in values.rows:
            job = Job(teacher, student, rows, values.tokens, world_size=1, teacher_bytes=4, device="cpu")
            estimated = estimate(job, Precision(stage=0, bytes=4)).device_bytes
            measured = measure(folder, rows, values.tokens)
            found.append(
                MemoryRow(rows, values.tokens, measured >> 20, estimated >> 20, round(estimated / measured, 3))
            )
            print(*(f"{field} {value}" for field, value in found[-1]._asdict().items()), sep=", ", flush=True)
    write_csv(RESULTS / "memory.csv", found)


if __name__ == "__main__":
    main()
