"""`python -m tinybert_ds.report --help`."""

from tinybert_ds.command_line import run_command
from tinybert_ds.report.command import main

if __name__ == "__main__":
    run_command(main)
