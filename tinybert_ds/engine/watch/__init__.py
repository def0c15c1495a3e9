"""Watching a run: figures, time, health, stalls."""
