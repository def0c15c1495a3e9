"""Enlarge a task's training data: `python data_tools/data_augmentation.py --help`."""

from tinybert_ds.command_line import run_command

if __name__ == "__main__":
    # Inside the condition, because worker processes import this file again and need none of what the command needs.
    from data_tools.augment_task import main

    run_command(main)
