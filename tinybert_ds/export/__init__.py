"""A model as files for other runtimes, in fewer bits, and what these files are worth."""
