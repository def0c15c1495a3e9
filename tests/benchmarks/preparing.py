"""Preparing a corpus: raw text to finished shards, against the tokenisers' own batch call and the published script.

    python tests/benchmarks/bench_corpus.py TEXT... --bert_model DIR [--original PATH] [--rounds 5] [--readme preparing]

TEXT is plain, .gz, .xz or .zst, with blank lines between documents; it is repeated to the sizes that are asked for, as
plain text, and read once before it is timed. One pass is the whole command after its imports: hash, tokenise, write,
sync; its shards are removed between passes. The peers are `encode_batch_fast` on the same lines, whose ids are dropped,
and, with `--original PATH`, the published script on the same text: tokenise and write one epoch. Peak memory is that of
the process that does the work, imports included. All but several workers runs on one core. The part "reading" is
bench_reading.py on the same shards. Writes results/corpus.csv, prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

from tokenizers import Tokenizer

from data_tools.text_input import LineReader, decode_lines
from data_tools.text_units import UNIT_BYTES, Problems
from tests.benchmarks import bench_reading
from tests.benchmarks.measurement import RESULTS, Row, interleave, publish, rows_of, table
from tests.benchmarks.prepared_shards import peak_mib, prepare_shards
from tests.benchmarks.published_form import import_original
from tinybert_ds.data.manifest import open_corpus
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_json

BENCHMARK = "corpus"
PARTS = ("speed", "memory", "workers", "reading")
OURS, WORKERS, PEER, PUBLISHED = "ours", "ours, {} workers", "encode_batch_fast by line", "published script"


def write_text(texts: Sequence[Path], path: Path, size: int) -> Path:
    """Write the texts, repeated as often as needed, up to so many bytes and the end of a line."""
    with path.open("wb") as file:
        while file.tell() < size:
            for text in texts:
                lines = LineReader(text)
                while file.tell() < size and (piece := lines.take_lines(min(UNIT_BYTES, size - file.tell()))):
                    file.write(piece)
                lines.close()
            file.write(b"\n")
    return path


def encode_lines(text: Path, tokenizer: Tokenizer) -> None:
    """Encode each line of a text, a megabyte of lines at a time."""
    reader = LineReader(text)
    while piece := reader.take_lines(UNIT_BYTES):
        lines = [line for line in decode_lines(text, 1, piece, Problems(False)) if line]
        tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    reader.close()


def published_command(original: Path, text: Path, model: str, output: Path) -> Callable[[], None]:
    """The published script's main, ready to run on the text."""
    import_original(original)
    folder = next(p for p in (original, original / "TinyBERT") if (p / "pregenerate_training_data.py").is_file())
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        script = importlib.import_module("pregenerate_training_data")
    command = ["--train_corpus", str(text), "--bert_model", model, "--output_dir", str(output), "--do_lower_case"]

    def run() -> None:
        shutil.rmtree(output, ignore_errors=True)
        with (
            mock.patch.object(sys, "argv", ["pregenerate_training_data.py", *command, "--epochs_to_generate", "1"]),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            script.main()

    return run


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and the processes that it starts, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def measure_speed(text: Path, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Rows of the comparisons on one core."""
    backend = Tokenizer.from_str(tokenizer_json(load_tokenizer(options.bert_model, None)))
    variants: dict[str, Callable[[], object]] = {
        OURS: lambda: prepare_shards(text, options.bert_model, folder / "ours", 1),
        PEER: lambda: encode_lines(text, backend),
    }
    if options.original is not None:
        variants[PUBLISHED] = published_command(options.original, text, options.bert_model, folder / "published")
    seconds = interleave(variants, options.rounds)
    manifest = open_corpus(folder / "ours").manifest
    disk_bytes = sum(record.bytes for record in manifest.files.values())
    lines = manifest.sentences
    case = f"text to shards, {manifest.text_bytes / 1e6:.0f} MB, {disk_bytes / manifest.tokens:.2f} bytes a token"
    rows = rows_of(BENCHMARK, case, {name: seconds[name] for name in (OURS, PEER)}, peers={OURS: PEER}, samples=lines)
    if PUBLISHED in seconds:
        both = {name: seconds[name] for name in (OURS, PUBLISHED)}
        rows += rows_of(BENCHMARK, f"{case}, against one epoch", both, peers={OURS: PUBLISHED}, samples=lines)
    return rows


def measure_workers(text: Path, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Rows of several workers against one."""
    several = WORKERS.format(options.workers)
    variants = {
        OURS: lambda: prepare_shards(text, options.bert_model, folder / "one", 1),
        several: lambda: prepare_shards(text, options.bert_model, folder / "several", options.workers),
    }
    case = f"workers, {text.stat().st_size / 1e6:.0f} MB"
    return rows_of(BENCHMARK, case, interleave(variants, options.rounds), peers={several: OURS})


def measure_memory(texts: Iterator[Path], options: argparse.Namespace, folder: Path) -> list[Row]:
    """Rows with the peak memory of the process that does the work, for texts of several sizes."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for text in texts:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peak, seconds = pool.submit(peak_mib, text, options.bert_model, folder / "memory").result()
        case = f"peak memory, {text.stat().st_size / 1e6:.0f} MB"
        rows += rows_of(BENCHMARK, case, {OURS: [seconds]}, peers={}, extra_mib={OURS: peak})
        text.unlink()
    return rows


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Time the preparation of a corpus.", allow_abbrev=False)
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--bert_model", required=True, metavar="DIR", help="model directory with an uncased vocab.txt")
    parser.add_argument("--original", type=Path, help="checkout of the published implementation, to compare with it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=25, help="text of the comparisons on one core")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--workers_megabytes", type=float, default=100, help="text for the workers")
    parser.add_argument("--memory_megabytes", type=float, nargs="*", default=[100, 1000], help="texts for peak memory")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS / "corpus.csv", help="CSV to write")
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of README.md")
    options = parser.parse_args(arguments)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # figures are per core
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def text_of(megabytes: float) -> Path:
            return write_text(options.texts, folder / f"{megabytes:g}.txt", int(megabytes * 1e6))

        rows: list[Row] = []
        with one_core():
            if "speed" in options.parts:
                rows += measure_speed(text_of(options.megabytes), options, folder)
            if "memory" in options.parts:
                rows += measure_memory(map(text_of, options.memory_megabytes), options, folder)
        if "workers" in options.parts:
            rows += measure_workers(text_of(options.workers_megabytes), options, folder)
        if rows:
            publish(rows, options.out, readme=options.readme, plotted=False)
            print(table(rows))
        if "reading" in options.parts:
            shards = folder / "ours"
            with one_core():
                if not shards.exists():
                    prepare_shards(text_of(options.megabytes), options.bert_model, shards, 1)
                readme = ["--readme", "reading"] if options.readme else []
                bench_reading.main([str(shards), "--rounds", str(options.rounds), *readme])
    return rows
