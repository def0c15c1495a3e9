"""What a user can be told: every mistake of theirs becomes one of these, and ends a command with exit code 2.

A message says what failed, what was found, what is allowed and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75
"""A run that was asked to stop has saved its state and wants to be started again (EX_TEMPFAIL of sysexits.h)."""

MOST_LISTED = 50
"""Of the problems of one message."""


class UserError(Exception):
    """Base of all errors that the user can mend; the commands print them without a traceback."""


class ConfigError(UserError):
    """Arguments, model configs or a DeepSpeed JSON that do not fit together."""


class RankError(ConfigError):
    """Environment variables of a launcher that do not fit; told by every rank, as the others may not meet it."""


class DataError(UserError):
    """Texts, task files or shards that cannot be used as they are."""


class ModelError(UserError):
    """A model directory that cannot be a teacher or a student."""


class CheckpointError(UserError):
    """A checkpoint or an output directory that cannot be continued."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose loss is not finite any more."""


class FileError(UserError):
    """A file or directory that the system does not let be read or written."""


class FaultError(Exception):
    """Something broke that is nobody's mistake, such as a host that went away; exit code EXIT_FAULT, no traceback."""


class PreemptedError(Exception):
    """The run was asked to stop, and has saved its state; exit code EXIT_PREEMPTED."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the known word that is most like this one, "" where none is."""
    close = difflib.get_close_matches(word.lower(), sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def raise_all(problems: Sequence[str], error: type[UserError] = ConfigError) -> None:
    """Raise one `error` that lists every problem, `MOST_LISTED` of them in full; do nothing when there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise error(problems[0])
    listed = [f"  - {problem}" for problem in problems[:MOST_LISTED]]
    if len(problems) > MOST_LISTED:
        listed.append(f"  - and {len(problems) - MOST_LISTED:,} more")
    raise error(f"{len(problems):,} problems:\n" + "\n".join(listed))
