"""What a user can be told: every mistake of theirs becomes one of these, and ends a command with exit code 2.

A message says what failed, what was found, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Base of all errors that the user can mend; the commands print them without a traceback."""


class ConfigError(UserError):
    """Arguments, model configs or a DeepSpeed JSON that do not fit together."""


class DataError(UserError):
    """Texts, task files or shards that cannot be used as they are."""


class ModelError(UserError):
    """A model directory that cannot be a teacher or a student."""


class CheckpointError(UserError):
    """A checkpoint or an output directory that cannot be continued."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose loss is no number any more."""


def raise_all(problems: Sequence[str], error: type[UserError] = ConfigError) -> None:
    """Raise one `error` that lists every problem; do nothing when there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise error(problems[0])
    raise error(f"{len(problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in problems))
