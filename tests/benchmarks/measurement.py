"""How the benchmarks measure: interleaved rounds, medians, peak memory in fresh processes, one CSV schema.

A row of the CSV is one variant in one case. Its ratio is the peer's median over its own, taken in the same rounds:
above 1 it is faster than the peer.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import datetime
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tinybert_ds.hardware import wait_for

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
VERSIONS = ("torch", "deepspeed", "transformers")


class Row(NamedTuple):
    """One variant in one case. Times are seconds of one pass over the case's samples."""

    benchmark: str
    case: str
    variant: str
    peer: str
    rounds: int
    median_s: float
    p20_s: float
    p80_s: float
    ratio: float  # the peer's median over this one's
    samples_per_s: float | None = None
    floor_s: float | None = None  # multiplications of the case at the matrix-product peak of the same run
    extra_mib: float | None = None  # peak memory above that before the pass, in a process of its own


def default_device() -> torch.device:
    """Return the device that is measured: a GPU where there is one, and the project's commands would take it."""
    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available()
    return torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, *, warmups: int = 1
) -> dict[str, list[float]]:
    """Run all variants in turn, so many rounds; return each one's seconds. Warm-up rounds do not count.

    A GPU has finished what came before when the clock starts, and the variant's own work when it stops.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    device = default_device()
    for current in range(warmups + rounds):
        for name, run in variants.items():
            gc.collect()
            wait_for(device)
            started = time.perf_counter()
            run()
            wait_for(device)
            if current >= warmups:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def rows_of(
    benchmark: str,
    case: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    peers: Mapping[str, str],
    samples: int | None = None,
    floors: Mapping[str, float] | None = None,
    extra_mib: Mapping[str, float] | None = None,
) -> list[Row]:
    """Turn the seconds of a case's variants into rows.

    Args:
        peers: Variant -> the variant it is compared with; one without a peer is its own.
        samples: Samples of one pass.
        floors, extra_mib: By variant, where known.
    """
    rows = []
    for name, measured in seconds.items():
        peer = peers.get(name, name)
        median = statistics.median(measured)
        p20, p80 = (float(np.percentile(measured, share)) for share in (20, 80))
        ratio = statistics.median(seconds[peer]) / median
        floor, extra = ((figures or {}).get(name) for figures in (floors, extra_mib))
        speed = None if samples is None else samples / median
        rows.append(Row(benchmark, case, name, peer, len(measured), median, p20, p80, ratio, speed, floor, extra))
    return rows


def extra_peak_mib(prepare: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Return by how much a call's peak memory exceeds what was taken before it, in MiB: resident, or on the GPU.

    Args:
        prepare: Builds, in a fresh process, the call that is measured. Picklable, as are the arguments.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_peak, prepare, arguments, torch.get_num_threads()).result()


def _measure_peak(prepare: Callable[..., Callable[[], object]], arguments: Sequence[object], num_threads: int) -> float:
    torch.set_num_threads(num_threads)
    run = prepare(*arguments)
    gc.collect()
    device = default_device()
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - allocated) / 2**20
    _return_free_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _resident_kib("VmRSS")
    run()
    return (_resident_kib("VmHWM") - before) / 1024


def _return_free_memory() -> None:
    """Give back what the allocator keeps of an earlier pass, which would hide as much of this one."""
    with contextlib.suppress(AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def _resident_kib(field: str) -> int:
    # ru_maxrss would do, but a process starts with its parent's.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def half_precision_gain(dtype: torch.dtype) -> float:
    """Return how many times as fast as float32 ones matrix products of a half precision are on this machine."""
    peaks = [matrix_peak(kind, size=256, rounds=3) for kind in (dtype, torch.float32)]
    return peaks[0] / peaks[1]


def matrix_peak(dtype: torch.dtype, *, size: int = 1536, rounds: int = 5) -> float:
    """Return the multiply-adds per second, times 2, that a square matrix product of a dtype reaches here."""
    device = default_device()
    if device.type != "cpu":
        size *= 4  # what fills it
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = interleave({"product": lambda: left @ right}, rounds)["product"]
    return 2 * size**3 / min(seconds)


def environment() -> dict[str, str]:
    """Return what a figure depends on beside the code: machine, threads, versions; and the date and the commit."""
    root = Path(__file__).parents[2]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "machine": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in VERSIONS},
    }


def environment_line() -> str:
    """Return the same as a line of text."""
    return ", ".join(f"{name} {value}" for name, value in environment().items())


def _processor() -> str:
    capabilities = torch.cpu.get_capabilities()
    if (device := default_device()).type != "cpu":
        return torch.cuda.get_device_name(device)
    best = next((name for name in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if capabilities.get(name)), "")
    return f"{capabilities.get('cpu_name') or platform.machine()} {best}".strip()


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Write the rows, `Row`s or other named tuples of one kind, each with the environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    around = environment()
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow([*rows[0]._fields, *around])
        for row in rows:
            cells = ["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in row]
            writer.writerow([*cells, *around.values()])


def publish(rows: Sequence[Row], out: Path, *, readme: str | None, plotted: bool) -> None:
    """Write the CSV, and on demand the table of a section of the README and the plot beside the CSV."""
    write_csv(out, rows)
    if readme:
        update_readme(readme, rows)
    if plotted:
        plot(out.with_suffix(".png"), rows)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| case | variant | ms, median (p20 to p80) | ratio to its peer | samples/s | time over floor | extra MiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = f"{row.median_s * 1e3:.1f} ({row.p20_s * 1e3:.1f} to {row.p80_s * 1e3:.1f})"
        ratio = "" if row.peer == row.variant else f"{row.ratio:.2f} ({row.peer})"
        speed = "" if row.samples_per_s is None else f"{row.samples_per_s:.1f}"
        floor = "" if row.floor_s is None else f"{row.median_s / row.floor_s:.2f}"
        extra = "" if row.extra_mib is None else f"{row.extra_mib:.0f}"
        lines.append(f"| {row.case} | {row.variant} | {times} | {ratio} | {speed} | {floor} | {extra} |")
    return "\n".join(lines) + "\n"


def update_readme(section: str, rows: Sequence[Row], *, readme: Path = README) -> None:
    """Put the rows, and what they were measured on, between the two marks of a section of the benchmarks' README."""
    replace_section(section, table(rows), readme=readme)


def replace_section(section: str, content: str, *, readme: Path = README) -> None:
    """Put a table, and what it was measured on, between the two marks of a section."""
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{readme} has no section between {begin} and {end}; put these two lines where it belongs")
    around = environment_line()
    readme.write_text(f"{before}{begin}\n{around}\n\n{content}{end}{after}", encoding="utf-8")


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw the ratios as bars, a group for each case."""
    try:
        import matplotlib  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SystemExit(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    compared = [row for row in rows if row.peer != row.variant]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(compared) + 1.2), layout="constrained")
    names = [f"{row.case}: {row.variant} over {row.peer}" for row in compared]
    axes.barh(names, [row.ratio for row in compared])
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the peer (log)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
