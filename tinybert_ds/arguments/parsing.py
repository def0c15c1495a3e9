"""From the words of a command line to its dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

from transformers import HfArgumentParser

from tinybert_ds.arguments.recipes import recipe_values, recipe_words
from tinybert_ds.errors import ConfigError, did_you_mean


class _Parser(HfArgumentParser):
    """Raises instead of printing the usage on every rank."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}. See {self.prog} --help")


class CommandArguments(Protocol):
    """What every command has that runs on ranks."""

    @property
    def output_dir(self) -> str: ...

    @property
    def log_level(self) -> str: ...

    @property
    def no_onednn_matmul(self) -> bool: ...

    def problems(self) -> list[str]:
        """Everything that is wrong with the values by themselves, one sentence each."""
        ...


Arguments = TypeVar("Arguments", bound=CommandArguments)


def parse_arguments(kind: type[Arguments], argv: Sequence[str], prog: str) -> tuple[Arguments, list[str]]:
    """Parse a command line into its dataclass.

    Args:
        kind: The dataclass of the command.
        argv: The words after the command's name.
        prog: The command's name, for its messages.

    Returns:
        The arguments, and every problem with them (unknown flags, bad values, contradictions), one sentence each.

    Raises:
        ConfigError: A required flag is missing, a value has the wrong type, or there is no such recipe.
    """
    arguments, unknown = _parse(kind, argv, prog)
    values = recipe_values(arguments)
    if values:
        try:
            arguments, unknown = _parse(kind, [*recipe_words(values), *argv], prog)  # the last one wins
        except ConfigError as error:
            raise ConfigError(f"--recipe {getattr(arguments, 'recipe', None)}: {error}") from error
    return arguments, _unknown_problems(unknown, kind, prog) + arguments.problems()


def _unknown_problems(words: Sequence[str], kind: type[Any], prog: str) -> list[str]:
    """What to say of words that the parser did not take: a line for each flag, its values left out."""
    known = [f"--{field.name}" for field in dataclasses.fields(kind)]
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    return [
        f"unknown argument {word!r}{did_you_mean(word, known)}; {prog} --help lists the known ones"
        for word in flags or words
    ]


def _parse(kind: type[Arguments], argv: Sequence[str], prog: str) -> tuple[Arguments, list[str]]:
    description = (kind.__doc__ or "").strip()
    parser = _Parser([kind], prog=prog, description=description, allow_abbrev=False)
    parsed, unknown = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    return cast(Arguments, parsed), unknown
