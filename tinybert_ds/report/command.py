"""The command: read the runs, write report.html and report.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinybert_ds.errors import ConfigError
from tinybert_ds.files import write_atomically
from tinybert_ds.report.markdown import render_markdown
from tinybert_ds.report.page import render_page
from tinybert_ds.report.runs import read_runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        ConfigError: A directory without a run, or one that cannot be written to.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tinybert_ds.report",
        description="Write report.html, one file with curves and tables, and report.md about runs and how they differ.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="OUT_DIR",
        help="--output_dir of a training command, or a directory with such directories",
    )
    parser.add_argument("--output_dir", type=Path, help="where the report goes (default: into the first run)")
    values = parser.parse_args(arguments)
    runs = read_runs(values.runs)
    target = values.output_dir or runs[0].path
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / "report.html", render_page(runs))
        write_atomically(target / "report.md", render_markdown(runs))
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {target}: {error.strerror}; give another --output_dir"
        ) from error
    print(f"wrote {target / 'report.html'} and report.md: {', '.join(run.name for run in runs)}")
