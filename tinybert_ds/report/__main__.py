"""The command: `python -m tinybert_ds.report --help`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinybert_ds.arguments import parse
from tinybert_ds.arguments.compare import ReportArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import ConfigError
from tinybert_ds.files import make_output_directory, write_atomically
from tinybert_ds.report.markdown import TITLE_OF_ONE, TITLE_OF_SEVERAL, render_markdown
from tinybert_ds.report.models import find_measured
from tinybert_ds.report.page import render_page
from tinybert_ds.report.runs import read_runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; raises ConfigError for a directory without a run."""
    values = parse(ReportArguments, arguments)
    given = [Path(directory) for directory in values.runs]
    runs = read_runs(given)
    target = runs[0].path if values.output_dir is None else Path(values.output_dir)
    make_output_directory(target)
    _require_own(target / "report.md")
    write_atomically(target / "report.html", render_page(runs, find_measured(given)))
    write_atomically(target / "report.md", render_markdown(runs))
    print(f"wrote {target / 'report.html'} and report.md: {', '.join(run.name for run in runs)}")


def _require_own(file: Path) -> None:
    """Raise ConfigError where another command, such as a comparison or an export, has written a report of that name."""
    head = file.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if file.is_file() else TITLE_OF_ONE
    if not head.startswith(TITLE_OF_ONE) and not TITLE_OF_SEVERAL.fullmatch(head):
        raise ConfigError(
            f"{file} was not written by this command, which would replace it; give another --output_dir (nothing was "
            "changed)"
        )


if __name__ == "__main__":
    run_command(main)
