"""The command: read the runs, write report.html and report.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinybert_ds.arguments import parse
from tinybert_ds.arguments.compare import ReportArguments
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
    values = parse(ReportArguments, arguments)
    runs = read_runs([Path(directory) for directory in values.runs])
    target = runs[0].path if values.output_dir is None else Path(values.output_dir)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / "report.html", render_page(runs))
        write_atomically(target / "report.md", render_markdown(runs))
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {target}: {error.strerror}; give another --output_dir"
        ) from error
    print(f"wrote {target / 'report.html'} and report.md: {', '.join(run.name for run in runs)}")
