"""Forms of an ONNX graph, as transformers' exporter writes it and as launchers/export_model.py does, in float and int8.

    python tests/benchmarks/onnx_forms.py [--threads 1] [--rounds 15] [--model DIR]

The model is a student of a shipped config with random weights: they do not change the time. Rows of 8 to 48 tokens of
noise, padded to the longest of the batch; all forms in turn. With one thread the time is the processor's, which other
work on the machine disturbs little; the table has the lower quartile of the rounds and its ratio to torch's.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import environment_line
from tinybert_ds.export import convert
from tinybert_ds.export.attention import OPERATOR_FROM
from tinybert_ds.export.quantise import quantise_onnx
from tinybert_ds.export.runtimes import Feed, open_file

STUDENTS = Path(__file__).resolve().parents[2] / "tinybert_ds" / "students"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
BATCHES = (1, 32)
SHORTEST, LONGEST = 8, 48


def main() -> None:
    """Write the forms, time them in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(STUDENTS / "3L_192.json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(words.model)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        runs = {"torch fp32": in_torch(model)}
        for name, file in write_forms(model, Path(folder)):
            runs[name] = open_file("onnx", file, words.threads)
        print(environment_line())
        print(f"{words.threads} threads, {'processor' if words.threads == 1 else 'wall'} time\n")
        print("| batch | form | ms | times as fast as torch |\n|---:|---|---:|---:|")
        for size in BATCHES:
            for name, value, ratio in timed(runs, config.vocab_size, size, words.rounds, words.threads):
                print(f"| {size} | {name} | {value:.2f} | {ratio:.2f} |")


def write_forms(model: torch.nn.Module, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of each form."""
    logging.disable(logging.WARNING)
    theirs, ours, one = (folder / f"{name}.onnx" for name in ("theirs", "ours", "one_operator"))
    convert.save_onnx(convert.traced_onnx(model, INPUTS, opset=20), theirs)
    convert.export_onnx(model, INPUTS, ours, opset=20)
    convert.export_onnx(model, INPUTS, one, opset=OPERATOR_FROM)
    without = [whole.with_stem(f"{whole.stem}_without_padding") for whole in (ours, one)]
    for whole, tokens in zip((ours, one), without, strict=True):
        convert.drop_padding_of(whole, tokens)
    for name, whole in (
        ("transformers'", theirs),
        ("ours with padding", ours),
        ("ours", without[0]),
        ("ours with padding, attention one operator", one),
        ("ours, attention one operator", without[1]),
    ):
        small = whole.with_stem(f"{whole.stem}_int8")
        yield f"{name}, fp32", whole
        quantise_onnx(whole, small, scales="dynamic", calibration=[])
        yield f"{name}, int8 dynamic", small


def in_torch(model: torch.nn.Module) -> Callable[[Feed], np.ndarray]:
    """Return the model as a runtime."""

    @torch.inference_mode()
    def run(feed: Feed) -> np.ndarray:
        return model(**{name: torch.from_numpy(value) for name, value in feed.items()}).logits.numpy()

    return run


def timed(
    runs: dict[str, Callable[[Feed], np.ndarray]], vocabulary: int, size: int, rounds: int, threads: int
) -> list[tuple[str, float, float]]:
    """Return name, milliseconds and the ratio to the first one's, all in turn on the same rows."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    rng, times = np.random.default_rng(0), {name: list[float]() for name in runs}
    for number in range(rounds + 1):
        lengths = rng.integers(SHORTEST, LONGEST + 1, size)
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        tokens = rng.integers(5, vocabulary, mask.shape) * mask
        feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": 0 * mask}
        for name, run in runs.items():
            begin = clock()
            run(feed)
            if number:
                times[name].append(1000 * (clock() - begin))
    found = {name: float(np.quantile(values, 0.25)) for name, values in times.items()}
    first = next(iter(found.values()))
    return [(name, value, first / value) for name, value in found.items()]


if __name__ == "__main__":
    main()
