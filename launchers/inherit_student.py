"""What `deepspeed` runs: tinybert_ds/stages/inherit.py; see --help."""

from tinybert_ds.command_line import run_training

if __name__ == "__main__":
    run_training("inherit")
