"""Measure a student beside its teacher: `python launchers/compare_models.py --help`."""

from tinybert_ds.stages.entry import prepare, run

if __name__ == "__main__":
    prepare(on_cpu=False)  # and not a stage that launchers start on several hosts
    from tinybert_ds.stages.compare import main

    run(main)
