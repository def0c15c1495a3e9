"""Measure a student beside its teacher: `python launchers/compare_models.py --help`."""

from tinybert_ds.command_line import seconds_since_start
from tinybert_ds.stages.entry import run_stage


def stage() -> None:
    """Import the command and run it."""
    from tinybert_ds.stages.compare import main  # noqa: PLC0415 - see run_stage

    main(seconds_before=seconds_since_start())


if __name__ == "__main__":
    run_stage(stage, on_cpu=True)
