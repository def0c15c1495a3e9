"""Measure a student beside its teacher: `python launchers/compare_models.py --help`."""

from tinybert_ds.command_line import run_command, seconds_since_start
from tinybert_ds.stages.compare import main

if __name__ == "__main__":
    run_command(lambda: main(seconds_before=seconds_since_start()))
