"""A page about finished, running or stopped runs: `python -m tinybert_ds.report OUT_DIR [OUT_DIR ...]`."""
