"""Which implementations there are to choose from, and what is said of the choice."""

from __future__ import annotations

import functools
import importlib.util
import logging

logger = logging.getLogger(__name__)

WITHOUT_TRITON = "triton is not installed (pip install triton)"


@functools.cache
def triton_is_installed() -> bool:
    """Return whether there is a triton to import."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def announce(choice: str) -> None:
    """Log, once, what "auto" has chosen and why."""
    logger.info("%s", choice)
