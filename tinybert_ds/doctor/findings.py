"""What the doctor has to say: each finding with its fix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Level = Literal["ok", "note", "problem"]
_MARKS: dict[Level, str] = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


class Finding(NamedTuple):
    """One thing that was looked at. A problem keeps the job from running, a note does not."""

    level: Level
    what: str
    fix: str = ""


def render(title: str, findings: Iterable[Finding]) -> str:
    """Return a section of the report."""
    lines = [title]
    for level, what, fix in findings:
        lines.append(f"  {_MARKS[level]}  {what}")
        if fix:
            lines.append(f"           -> {fix}")
    return "\n".join(lines)


def gib(size: float) -> str:
    """Return bytes as a person reads them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.0f} MiB"
