"""From the words of a command line to its dataclass: every mistake is found, and all are told together."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING
from typing import Any, Generic, NamedTuple, TypeVar

from tinybert_ds.arguments.groups import Stage
from tinybert_ds.arguments.option import Command, Decides, Flag, flags_of, named_path
from tinybert_ds.arguments.recipes import recipe_values
from tinybert_ds.errors import ConfigError, did_you_mean, raise_all
from tinybert_ds.foreign_text import quoted

Arguments = TypeVar("Arguments", bound=Stage)
AnyCommand = TypeVar("AnyCommand", bound=Command)

_TITLES: dict[Decides, str] = {
    "data": "what is read",
    "place": "where things are kept",
    "result": "what comes of it",
    "pace": "how long, how often, how loudly",
    "machine": "what it runs on",
}
_WORDS = {**dict.fromkeys(("true", "yes", "t", "y", "1"), True), **dict.fromkeys(("false", "no", "f", "n", "0"), False)}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def parse_arguments(
    kind: type[AnyCommand], argv: Sequence[str] | None, prog: str | None = None
) -> tuple[AnyCommand, list[str]]:
    """Parse a command line into its dataclass.

    Args:
        argv: The words after the command's name; None: those of this process.
        prog: The command's name, for its messages; by default what the dataclass says.

    Returns:
        The arguments, and every problem with them (unknown flags, values out of bounds, contradictions).

    Raises:
        ConfigError: A required flag is missing, a value has the wrong type, or there is no such recipe. It tells all
            other problems too.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(kind, prog or kind.prog)
    parsed = _parse(kind, words, parser)
    try:
        values = recipe_values(parsed.arguments)
    except ConfigError as error:
        raise_all([*parsed.wrong, *parsed.unfit, str(error)])
    if values:
        own = parsed.wrong
        parsed = _parse(kind, [*(f"--{name}={value}" for name, value in values.items()), *words], parser)
        recipe = getattr(parsed.arguments, "recipe", "")
        wrong = [problem if problem in own else f"--recipe {recipe}: {problem}" for problem in parsed.wrong]
        parsed = parsed._replace(wrong=wrong)
    if parsed.wrong:
        raise_all([*parsed.wrong, *parsed.unfit])
    return parsed.arguments, parsed.unfit


def parse(kind: type[AnyCommand], argv: Sequence[str] | None, prog: str | None = None) -> AnyCommand:
    """Parse a command line into its dataclass; raises ConfigError with everything that is wrong with it."""
    arguments, problems = parse_arguments(kind, argv, prog)
    raise_all(problems)
    return arguments


def handed_on(kind: type[Command], own: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return those flags of another command, with their values, that go for this one too.

    These are the ones that it knows, that decide no result of a training, and that its own words do not set.
    """
    known = {flag.name for flag in flags_of(kind) if flag.says.decides != "result"}
    taken = known - {_name(word) for word in own if word.startswith("--")}
    result, wanted = [], False
    for word in words:
        wanted = _name(word) in taken if word.startswith("--") else wanted
        if wanted:
            result.append(word)
    return result


def renamed(kind: type[Command], argv: Sequence[str] | None) -> list[str]:
    """Return what to say of the flags of a command line that are called by the names of earlier versions."""
    given = {_name(word) for word in (sys.argv[1:] if argv is None else argv) if word.startswith("--")}
    return [f"--{f.says.older} is called {f.shown} now" for f in flags_of(kind) if f.says.older in given]


class _Bad(NamedTuple):
    """What a word is that is no value of its flag."""

    problem: str


class _Parsed(NamedTuple, Generic[AnyCommand]):
    arguments: AnyCommand
    wrong: list[str]  # what keeps the arguments from being more than a stand-in
    unfit: list[str]


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage on every rank."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}. See {self.prog} --help")


class _Help(argparse.HelpFormatter):
    """A flag under its published name alone, with what its value is called once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = action.metavar if isinstance(action.metavar, str) and action.metavar else ""
        name = action.option_strings[0] if action.dest != "help" else "--help"
        return f"{name} {value}{' ...' if value and action.nargs == '*' else ''}".rstrip()


def _parser(kind: type[Command], prog: str) -> argparse.ArgumentParser:
    flags = flags_of(kind)
    needed = [flag for flag in flags if flag.default is MISSING and not flag.says.positional]
    places = [flag for flag in flags if flag.says.positional]
    usage = [prog, *(f"{flag.shown} {_metavar(flag)}" for flag in needed), "[FLAGS]", *(flag.shown for flag in places)]
    parser = _Parser(
        prog=prog,
        usage=" ".join(usage).replace("%", "%%"),
        description=(kind.__doc__ or "").strip(),
        allow_abbrev=False,
        formatter_class=lambda prog: _Help(prog, max_help_position=28, width=110),
    )
    for decides, title in _TITLES.items():
        group = parser.add_argument_group(title)
        for flag in flags_of(kind, decides=decides):
            _add(group, flag, kind.stages, alone=bool(places))
    return parser


def _add(group: Any, flag: Flag, stages: Sequence[str], *, alone: bool) -> None:
    """Declare a flag to argparse, which splits the words; what they mean is judged later, all of it.

    `alone`: a switch takes no value and a list one at a time, because a word behind them is the command's.
    """
    common = {"help": _help(flag, stages), "type": lambda word: _value(flag, word), "default": argparse.SUPPRESS}
    if flag.says.positional:
        nargs = ("..." if flag.says.repeat else "+") if flag.is_list else None
        group.add_argument(flag.name, nargs=nargs, metavar=flag.says.metavar, **common).required = False
        return
    spellings = [flag.name, *filter(None, [flag.says.older])]
    names = dict.fromkeys(f"--{name}" for each in spellings for name in (each, each.replace("_", "-")))
    if flag.item is bool and alone:
        group.add_argument(*names, action="store_true", help=common["help"], default=argparse.SUPPRESS)
    elif flag.item is bool:
        group.add_argument(*names, nargs="?", const=True, metavar="", **common)
    elif flag.is_list:
        action = "extend" if flag.says.repeat else "store"
        group.add_argument(*names, nargs=1 if alone else "*", action=action, metavar=_metavar(flag), **common)
    else:
        nothing = _Bad(f"{flag.shown} needs a value")
        group.add_argument(*names, nargs="?", const=nothing, metavar=_metavar(flag), **common)


def _help(flag: Flag, stages: Sequence[str]) -> str:
    text = flag.says.help
    if where := flag.place_in(stages):
        text += f" {where.capitalize()}."
    if flag.default is MISSING:
        text += " Required." if not flag.says.positional else ""
    elif not (flag.default is None or flag.default is False or flag.default in ("", []) or "Default:" in text):
        shown = " ".join(map(str, flag.default)) if flag.is_list else flag.default
        text += f" Default: {shown}."
    return text.replace("%", "%%")


def _metavar(flag: Flag) -> str:
    if flag.says.metavar:
        return flag.says.metavar
    if flag.choices:
        return "|".join(flag.choices)
    return {int: "N", float: "X"}.get(flag.item) or ("PATH" if flag.says.path else "TEXT")


def _value(flag: Flag, word: str) -> Any:
    """What a word means to a flag, or `_Bad`."""
    if flag.says.path:
        path = named_path(word)[1] if flag.says.path == "NAME=DIR" else word
        word = word.removesuffix(path) + os.path.expanduser(path)
    shown = quoted(word)
    if flag.choices and word not in flag.choices:
        near = did_you_mean(word, flag.choices)
        return _Bad(f"{flag.shown} is {shown}; it must be one of {', '.join(flag.choices)}{near}")
    if flag.item is str:
        return word
    try:
        return _WORDS[word.lower()] if flag.item is bool else flag.item(word)
    except (ValueError, KeyError):
        return _Bad(f"{flag.shown} is {shown}; it must be {_KINDS[flag.item]}")


def _parse(kind: type[AnyCommand], words: Sequence[str], parser: argparse.ArgumentParser) -> _Parsed[AnyCommand]:
    namespace, unknown = parser.parse_known_args(list(words))
    values = vars(namespace)
    wrong, stand_ins = [], {}
    for flag in flags_of(kind):
        if found := list(_problems(flag, values)):
            wrong += found
            values.pop(flag.name, None)
            stand_ins[flag.shown] = flag
            if flag.default is MISSING:
                values[flag.name] = [] if flag.is_list else flag.item()
    arguments = kind(**values)
    # Rules about what is missing would speak of the stand-ins.
    unfit = [problem for problem in arguments.problems() if not any(_names(problem, name) for name in stand_ins)]
    return _Parsed(arguments, wrong, [*_unknown_problems(unknown, kind, parser.prog), *unfit])


def _problems(flag: Flag, values: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the words of a flag."""
    if flag.name not in values:
        if flag.default is MISSING:
            yield f"{flag.shown} is missing: {flag.says.help.partition('. ')[0].rstrip('.')}"
        return
    value = values[flag.name]
    if flag.is_list and not value and not flag.says.positional:
        yield f"{flag.shown} needs at least one value"
    yield from (item.problem for item in (value if flag.is_list else [value]) if isinstance(item, _Bad))


def _names(problem: str, flag: str) -> bool:
    return re.search(rf"{re.escape(flag)}\b", problem) is not None


def _unknown_problems(words: Sequence[str], kind: type[Command], prog: str) -> list[str]:
    """What to say of words that the parser did not take: a line for each flag, its values left out."""
    known = [f"--{field.name}" for field in dataclasses.fields(kind)]
    flags = [word.partition("=")[0] for word in words if word.startswith("-")]
    return [
        f"unknown argument {word!r}{did_you_mean(word, known)}; {prog} --help lists the known ones"
        for word in flags or words
    ]


def _name(word: str) -> str:
    return word.partition("=")[0].removeprefix("--").replace("-", "_")
