"""What `deepspeed` runs: see tinybert_ds/stages/finetune.py, and --help."""

from tinybert_ds.command_line import run_command
from tinybert_ds.stages.finetune import main

if __name__ == "__main__":
    run_command(main)
