"""What the Triton kernels take of a GPU, compiled without one: registers, spilled bytes, shared memory, residents.

    python tests/benchmarks/kernel_usage.py [--all] [--readme SECTION]

A line for each kernel and combination of blocks on a step that is logged, and for the losses of usual sizes on others,
for compute capability 8.0 (A100) and 9.0 (H100); --all: every build that the dispatch may choose, for 12.0, too.
"programs" is how many a multiprocessor holds at once, by registers (65,536) and shared memory (164, 228 and 100 KiB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measurement import replace_section
from tests.support.compiled_kernels import Usage
from tests.support.kernel_matrix import Build, all_builds, compile_build, usual_builds, warps_of

REGISTERS = 65_536
SHARED_KIB = {80: 164, 90: 228, 120: 100}
OWN_SHARED_BYTES = 1024
"""What each program takes beside its own."""


def programs(build: Build, usage: Usage) -> int:
    """Return how many programs of a build a multiprocessor holds at once."""
    by_registers = REGISTERS // (-(-usage.registers // 8) * 8 * 32 * warps_of(build))
    by_memory = SHARED_KIB[build.capability] * 1024 // (usage.shared_bytes + OWN_SHARED_BYTES)
    return min(by_registers, by_memory)


def line(build: Build, usage: Usage) -> str:
    """Return a row of the table."""
    needs = ", ".join(name for name, needed in (("value", build.value), ("gradient", build.gradient)) if needed)
    what = f"{build.kernel}, {' and '.join(map(str, build.sizes))}, {' of '.join(build.dtypes)}, {needs}"
    padding = "" if build.valid else ", reference padding"
    return (
        f"| {what}{padding} | {build.capability // 10}.{build.capability % 10} | {usage.registers} | "
        f"{usage.stack_bytes} | {usage.shared_bytes / 1024:.0f} | {programs(build, usage)} |"
    )


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the command."""
    parser = argparse.ArgumentParser(description="List what the Triton kernels take.", allow_abbrev=False)
    parser.add_argument("--all", action="store_true", help="every build that the dispatch may choose; half an hour")
    parser.add_argument("--readme", metavar="SECTION", help="put the table into this section of the README")
    values = parser.parse_args(arguments)
    lines = [
        "| kernel | compute capability | registers | bytes spilled | shared KiB | programs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for build in all_builds() if values.all else usual_builds():
        lines.append(line(build, compile_build(build)))
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    if values.readme:
        replace_section(values.readme, table)
    return table


if __name__ == "__main__":
    main()
