"""What `deepspeed` runs: tinybert_ds/stages/embed_evaluate.py; see --help."""

from tinybert_ds.stages.entry import prepare, run

if __name__ == "__main__":
    prepare()
    from tinybert_ds.stages.embed_evaluate import main

    run(main)
