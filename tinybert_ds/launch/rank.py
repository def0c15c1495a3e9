"""A rank's command, directory and variables in one word that no shell changes: `python -m tinybert_ds.launch.rank`.

Remote shells, mpirun and DeepSpeed's launchers read words in ways of their own. So the word, of letters, digits, `-`
and `_`, goes by a variable; this module, which they start in the place of the stage, becomes what the word says.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tinybert_ds.command_line import run_command
from tinybert_ds.errors import ConfigError

MODULE = "tinybert_ds.launch.rank"
VARIABLE = "TINYBERT_DS_RANK"
LIMIT_BYTES = 100_000
"""Linux takes up to 128 KiB in one word, and an ssh command is one, with the rest of what it says."""


class RankCommand(NamedTuple):
    """What to run on a host; strings hold bytes that are no UTF-8 as `os.fsdecode` does."""

    words: Sequence[str]
    directory: str
    variables: Mapping[str, str]


def pack(command: RankCommand) -> str:
    """Return the command as one word.

    Raises:
        ConfigError: The word is too long; names the variables that take most of it.
    """
    text = json.dumps([list(command.words), command.directory, dict(command.variables)])
    word = base64.urlsafe_b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii").rstrip("=")
    if len(word) > LIMIT_BYTES:
        sizes = {name: len(value) for name, value in command.variables.items()}
        longest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ConfigError(
            f"the arguments and variables of a rank take {len(word):,} bytes even when compressed, and {LIMIT_BYTES:,} "
            f"can be handed on. The arguments have {sum(map(len, command.words)):,} characters; the longest variables: "
            f"{', '.join(f'{name} ({sizes[name]:,})' for name in longest)}. Unset or shorten what the ranks do not need"
        )
    return word


def unpack(word: str) -> RankCommand:
    """Return the command that `pack` has made a word of.

    Raises:
        ConfigError: It is another word.
    """
    try:
        text = zlib.decompress(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)))
        words, directory, variables = json.loads(text)
        return RankCommand(
            [str(word) for word in words], str(directory), {str(k): str(v) for k, v in variables.items()}
        )
    except (binascii.Error, zlib.error, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the variable {VARIABLE} is no command of a rank ({len(word):,} characters); it is set by run_hostfile.sh "
            "and run_mpi.sh: start one of them, or the stage itself"
        ) from error


def main() -> None:
    """Become the rank that the environment describes; arguments, such as `--local_rank=0`, come before its own.

    Raises:
        ConfigError: There is no word, or this host lacks its directory or program.
    """
    command = unpack(os.environ.get(VARIABLE, ""))
    environment = {name: value for name, value in os.environb.items() if name != VARIABLE.encode()}
    environment |= {_bytes(name): _bytes(value) for name, value in command.variables.items()}
    interpreter, script, *flags = (_bytes(word) for word in command.words)
    words = [interpreter, b"-u", script, *(os.fsencode(word) for word in sys.argv[1:]), *flags]
    try:
        os.chdir(_bytes(command.directory))
        os.execve(interpreter, words, environment)
    except OSError as error:
        raise ConfigError(
            f"this host, {os.uname().nodename}, cannot start the stage: {error}; every host needs the checkout, its "
            ".venv and the directory in which the launcher was called at the same paths"
        ) from error


def _bytes(text: str) -> bytes:
    """Return the bytes that the sender's arguments and variables had, whatever the locale of this host says."""
    return text.encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    run_command(main)
