"""Start a training command on many hosts, pass signals on to its ranks, leave nothing behind. No torch in here."""
