"""A run of a training command: its directory and its way from the first step to the last."""
