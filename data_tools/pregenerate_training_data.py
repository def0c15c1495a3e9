"""Turn text into shards: `python data_tools/pregenerate_training_data.py --help`."""

from tinybert_ds.command_line import run_command

if __name__ == "__main__":
    # Inside the condition, because worker processes import this file again and need none of what the command needs.
    from data_tools.prepare_corpus import main

    run_command(main)
