"""Tools that prepare and inspect data."""
