"""Time and memory of a student's closed-form start, beside the teacher's forward pass over the same text.

    python tests/benchmarks/bench_inherit.py [--tokens 200000] [--threads 2] [--student 4L_312]

The teacher has BERT-base's shape and random weights, the text is random: neither changes what is computed. CPU seconds
are those of all threads together; other work on the machine hardly moves them, unlike the wall clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from tests.support.inheriting import inherit
from tinybert_ds.data.batching import INFINITE_COUNTS
from tinybert_ds.hardware import choose_float32_products, inference_dtype
from tinybert_ds.models.build import build_student
from tinybert_ds.models.inherit.blocks import Blocks
from tinybert_ds.models.inherit.layers import embed, encoder_layers, first_state, run_layer
from tinybert_ds.models.layer_map import parse_layer_map
from tinybert_ds.models.wide_products import wide_products
from tinybert_ds.types import Batch


def random_text(tokens: int, *, rows: int, length: int, vocab_size: int) -> list[Batch]:
    """Return full rows of random tokens, `rows` of them in a block."""
    generator = torch.Generator().manual_seed(0)
    blocks = []
    for _ in range(max(1, round(tokens / rows / length))):
        ids = torch.randint(1000, vocab_size, (rows, length), generator=generator)
        blocks.append(
            Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), None, torch.arange(rows), INFINITE_COUNTS)
        )
    return blocks


@torch.no_grad()
def teacher_forward(teacher: PreTrainedModel, text: list[Batch]) -> None:
    """Run the teacher once over the text, as the start runs it."""
    layers = encoder_layers(teacher)
    with wide_products(teacher, torch.device("cpu")):
        for batch in text:
            state, mask = first_state(teacher, embed(teacher, batch)), batch.attention_mask.bool()
            for layer in layers:
                state = run_layer(layer, state, mask)


def seconds(action: Callable[[], object]) -> dict[str, float]:
    """Return what an action takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return {"wall_s": round(time.perf_counter() - wall, 1), "cpu_s": round(time.process_time() - cpu, 1)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--student", default="4L_312")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    values = parser.parse_args()
    torch.set_num_threads(values.threads)
    device = torch.device("cpu")
    choose_float32_products(device, onednn=True)
    torch.manual_seed(0)
    dtype = inference_dtype(device)
    teacher = BertModel(BertConfig()).eval().to(dtype)
    student = build_student(values.student, weights="random", head=None, seed=0)
    layer_map = parse_layer_map("uniform", 12, student.config.num_hidden_layers)
    text = random_text(values.tokens, rows=32, length=values.length, vocab_size=teacher.config.vocab_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with tempfile.TemporaryDirectory() as directory:
        blocks = Blocks(text, Path(directory))
        whole = seconds(lambda: inherit(teacher, student, layer_map, blocks))
        kept = sum(file.stat().st_size for file in Path(directory).iterdir()) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    forward = seconds(lambda: teacher_forward(teacher, text))
    result = {"tokens": blocks.tokens, "threads": values.threads, "teacher_dtype": str(dtype), "start": whole}
    memory = {"peak_gib": round(peak, 2), "before_gib": round(before, 2), "on_disk_gib": round(kept, 2)}
    print(json.dumps(result | {"one_teacher_forward": forward} | memory))


if __name__ == "__main__":
    main()
