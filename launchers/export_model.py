"""Write a model for other runtimes and measure it: `python launchers/export_model.py --help`."""

from tinybert_ds.stages.entry import prepare, run

if __name__ == "__main__":
    prepare(on_cpu=True)
    from tinybert_ds.stages.export import main

    run(main)
