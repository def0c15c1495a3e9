"""Measure a student beside its teacher: `python launchers/compare_models.py --help`."""

from tinybert_ds.stages.entry import prepare, run

if __name__ == "__main__":
    prepare()
    from tinybert_ds.stages.compare import main

    run(main)
