"""What `deepspeed` runs: see tinybert_ds/stages/general_distill.py, and --help."""

from tinybert_ds.command_line import run_command
from tinybert_ds.stages.general_distill import main

if __name__ == "__main__":
    run_command(main)
