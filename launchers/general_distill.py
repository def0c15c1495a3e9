"""What `deepspeed` runs: tinybert_ds/stages/general_distill.py; see --help."""

from tinybert_ds.command_line import run_training

if __name__ == "__main__":
    run_training("general_distill")
