"""A file that `fuzz.py` damages, and its readers."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]


@dataclasses.dataclass
class Target:
    """A file, its readers, and how it is damaged.

    Args:
        file: What is damaged; it lies beside everything else that is read.
        read: Reads it as the commands do and returns what a run would depend on; raises UserError.
        damages: Ways of damaging it, taken in turn.
        unseen: Whether a run depends on it without anybody looking at it.
        command: The command that reads it, for the sample that is run as commands.
    """

    file: Path
    read: Callable[[], Any]
    damages: Sequence[Damage]
    unseen: bool = False
    command: Sequence[object] = ()
    whole: bytes = dataclasses.field(init=False)
    expected: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.whole = self.file.read_bytes()
        self.expected = digest(self.read())


def digest(value: Any) -> str:
    """Name a value by its content."""
    return hashlib.blake2b(repr(value).encode(errors="backslashreplace")).hexdigest()
