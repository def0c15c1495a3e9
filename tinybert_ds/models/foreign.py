"""The one place where what libraries raise about a user's model becomes a message to that user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tinybert_ds.errors import ModelError, UserError

_LONGEST = 300  # characters of a library's own words


@contextmanager
def foreign_code(failed: str, advice: str = "") -> Iterator[None]:
    """Run a constructor, parser or model of a library on what a user gave.

    Libraries raise whatever they like about input that they do not understand, bare `Exception` included. Only what is
    no judgement about the input passes: our own errors and lack of memory.

    Args:
        failed: What failed, without a full stop; the library's words follow behind a colon.
        advice: What to do, behind them.

    Raises:
        ModelError: Whatever was raised inside.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{failed}: {in_short(error)}" + (f"; {advice}" if advice else "")) from error


def in_short(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says, cut where it is long."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
