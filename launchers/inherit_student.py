"""What `deepspeed` runs: tinybert_ds/stages/inherit.py; see --help."""

from tinybert_ds.stages.entry import prepare, run

if __name__ == "__main__":
    prepare()
    from tinybert_ds.stages.inherit import main

    run(main)
