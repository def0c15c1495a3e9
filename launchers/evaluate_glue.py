"""What `deepspeed` runs: tinybert_ds/stages/evaluate_glue.py; see --help."""

from tinybert_ds.stages.entry import run_stage


def stage() -> None:
    """Import the command and run it."""
    from tinybert_ds.stages.evaluate_glue import main  # noqa: PLC0415 - see run_stage

    main()


if __name__ == "__main__":
    run_stage(stage)
