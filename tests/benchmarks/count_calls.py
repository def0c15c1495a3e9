"""Operator calls and processor time of a step of general distillation on a CPU, whatever it learns.

    python tests/benchmarks/count_calls.py [--configs zero0_fp32 ...] [--rounds 9]

4 rows of 16 tokens, a 12-layer teacher of width 768 and the 4L_312 student, one thread. Calls are those that PyTorch's
profiler sees, all of them and those that no other operator made; the time is the fastest round's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_step import prepare_ours
from tests.benchmarks.measurement import environment_line
from tests.benchmarks.step_cases import Case

CONFIGS = {"zero0_fp32": "fp32", "zero0_autocast_bf16": "bf16", "zero1_bf16": "bf16"}
"""A shipped DeepSpeed config, and the teacher's precision beside it."""

OPERATORS = ("aten::", "mkldnn::")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--rounds", type=int, default=9)
    words = parser.parse_args()
    torch.set_num_threads(1)
    print(environment_line())
    print("\n| config | calls | by no other operator | s |\n|---|---:|---:|---:|")
    for config in words.configs:
        run = prepare_ours(Case("fixed", 4, 1, 16, 16), "usual", CONFIGS[config], f"{config}.json")
        run()
        times = []
        for _ in range(words.rounds):
            begin = time.process_time()
            run()
            times.append(time.process_time() - begin)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        calls = [event for event in profiler.events() if event.name.startswith(OPERATORS)]
        outer = [call for call in calls if call.cpu_parent is None or not call.cpu_parent.name.startswith(OPERATORS)]
        print(f"| {config} | {len(calls):,} | {len(outer):,} | {min(times):.3f} |", flush=True)


if __name__ == "__main__":
    main()
