"""A flag says all about itself: its declaration, and everything that follows from it.

A command is a frozen dataclass, each of its fields a flag made by `option`. What makes two runs the same, what
TensorBoard lists, what a recipe may set, which values are allowed, which stage a flag belongs to and which keys of the
DeepSpeed JSON it owns is read off the fields, and listed nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

Decides = Literal["result", "data", "place", "pace", "machine"]
"""What a flag decides: what comes of it; what is read; where things are kept; how long, how often and how loudly; what
it runs on. A flag that decides the result is part of a run's identity; one that decides the data is in it
by the fingerprint of what is read."""

STAGES = {
    "general": "general distillation",
    "finetune": "fine-tuning",
    "intermediate": "the intermediate stage",
    "prediction": "--pred_distill",
    "joint": "--joint",
    "evaluation": "--do_eval",
    "vectors": "distillation of vectors",
}
"""The stages of the training commands, which are the sections of a recipe too, and what a message calls them."""


@dataclass(frozen=True)
class Option:
    """What a flag's declaration says of it."""

    help: str
    decides: Decides
    stage: tuple[str, ...] = ()  # of `STAGES`, those that it is for; it is refused in others. None given: all
    least: float | None = None  # bounds of a number, or of each number of a list
    above: float | None = None
    most: float | None = None
    below: float | None = None
    recipe: bool | None = None  # whether a recipe may set it, which says how to learn, not what or where; None: by kind
    identity: str | None = None  # the attribute that stands for it in the identity, such as "schedule"; None: itself
    later: bool = False  # runs were begun before there was such a flag, as its default says: the identity is without it
    resolved: bool = False  # the identity holds what it comes to, which a stage knows once it has read the models
    hyper_parameter: bool | None = None  # TensorBoard lists it; None: if it decides the result or the data
    ds_key: tuple[str, ...] = ()  # dotted keys of the DeepSpeed JSON that are "auto" there and hold its value
    ds_follows: tuple[str, ...] = ()  # those that are "auto" there and are computed from it and other flags
    path: bool | Literal["NAME=DIR"] = False  # it names files, ~ in them is the home directory; with a name before each
    goes_with: str | None = None  # the flag without which nobody reads it, and it is refused
    asks_teacher: bool = False  # it is about asking a teacher, and refused where what that said is in columns
    metavar: str | None = None  # what --help calls the value
    positional: bool = False  # given without its name
    repeat: bool = False  # a list that may be given several times; a positional one takes all that follows
    older: str | None = None  # what it was called in earlier versions, which is understood still

    @property
    def in_recipes(self) -> bool:
        """Whether a recipe may set it."""
        return not self.path and self.decides != "place" if self.recipe is None else self.recipe

    @property
    def in_hyper_parameters(self) -> bool:
        """Whether TensorBoard lists it."""
        return self.decides in ("result", "data") if self.hyper_parameter is None else self.hyper_parameter


def option(help: str, default: Any = MISSING, *, decides: Decides, **says: Any) -> Any:
    """Declare a flag: a dataclass field with a default, or one that must be given, and what `Option` holds."""
    return _field(Option(help, decides, **says), default)


result = functools.partial(option, decides="result")
data = functools.partial(option, decides="data")
place = functools.partial(option, decides="place")
pace = functools.partial(option, decides="pace")
machine = functools.partial(option, decides="machine")


def like(declared: Any, *default: Any, **changes: Any) -> Any:
    """Declare a flag as it is declared elsewhere, with another default (MISSING: it must be given) or other parts of
    `Option`, such as its help."""
    says = dataclasses.replace(declared.metadata["says"], **changes)
    return _field(says, default[0] if default else _default(declared))


def _field(says: Option, default: Any) -> Any:
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"says": says})
    return dataclasses.field(default=default, metadata={"says": says})


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


@dataclass(frozen=True)
class Command:
    """What every command has."""

    prog: ClassVar[str] = "command"
    stages: ClassVar[tuple[str, ...]] = ()  # of `STAGES`

    @property
    def stage(self) -> str:
        """The one of `stages` that these arguments ask for."""
        return self.stages[0] if self.stages else ""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, one sentence each; overridden by rules between several of them."""
        return problems_of(self)


@dataclass(frozen=True)
class Flag:
    """A flag of a command."""

    name: str
    says: Option
    hint: Any
    default: Any  # MISSING: it must be given

    @property
    def shown(self) -> str:
        """Its name in a message."""
        return (self.says.metavar or self.name.upper()) if self.says.positional else f"--{self.name}"

    @property
    def is_list(self) -> bool:
        return get_origin(self.hint) is list

    @property
    def item(self) -> Any:
        """Type of a value, or of each of a list."""
        inner = get_args(self.hint) if get_origin(self.hint) not in (None, Literal) else (self.hint,)
        item = next(kind for kind in inner if kind is not type(None))
        return str if get_origin(item) is Literal else item

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that are allowed; none: all of the type."""
        return next((get_args(kind) for kind in (self.hint, *get_args(self.hint)) if get_origin(kind) is Literal), ())

    def place_in(self, stages: Sequence[str]) -> str:
        """Which of a command's stages it is for, in words; "" when for all."""
        own = [stage for stage in stages if self.concerns(stage)]
        return f"for {' and '.join(STAGES[stage] for stage in own)}" if len(own) < len(stages) else ""

    def concerns(self, stage: str) -> bool:
        """Whether it means anything in a stage."""
        return not self.says.stage or stage in self.says.stage


def flags_of(kind: type[Command], *, decides: Decides | None = None) -> tuple[Flag, ...]:
    """Return the flags of a command, or those that decide one thing."""
    hints = get_type_hints(kind)
    found = [Flag(f.name, f.metadata["says"], hints[f.name], _default(f)) for f in dataclasses.fields(kind)]
    return tuple(flag for flag in found if decides in (None, flag.says.decides))


def problems_of(arguments: Command) -> list[str]:
    """Return what is wrong with each value by itself, one sentence each: out of its bounds, for another stage, or for
    a flag that is not given."""
    found = []
    for flag in flags_of(type(arguments)):
        value = getattr(arguments, flag.name)
        items = value if isinstance(value, list) else [value]
        found += [problem for item in items if (problem := _value_problem(flag, item))]
        if not flag.concerns(arguments.stage) and value != flag.default:
            shown = flag.shown if value is True else f"{flag.shown} {value}"
            found.append(f"{shown} is {flag.place_in(arguments.stages)}; leave it out of {STAGES[arguments.stage]}")
        if flag.says.goes_with and value != flag.default and not getattr(arguments, flag.says.goes_with):
            found.append(f"{flag.shown} is for --{flag.says.goes_with}; leave it out")
    return found


def column_problems(arguments: Command) -> list[str]:
    """Return which flags about asking a teacher are given, for a stage that reads what it said. One sentence each."""
    flags = [flag for flag in flags_of(type(arguments)) if flag.says.asks_teacher]
    given = [(flag, value) for flag in flags if (value := getattr(arguments, flag.name)) != flag.default]
    return [
        f"{flag.shown if value is True else f'{flag.shown} {value}'} is about asking a teacher, and what it said is in "
        "the columns that `teacher` of the task file names; leave it out"
        for flag, value in given
    ]


def _value_problem(flag: Flag, value: Any) -> str | None:
    directory = named_path(str(value))[1] if flag.says.path == "NAME=DIR" else str(value)
    if flag.says.path and directory.startswith("~"):  # parsing has left it
        return f"{flag.shown} is {value}; there is no such home directory: write ./~... for a file of that name"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"{flag.shown} is {value}; it must be a finite number"
    says = flag.says
    fits = (
        (says.least is None or value >= says.least)
        and (says.above is None or value > says.above)
        and (says.most is None or value <= says.most)
        and (says.below is None or value < says.below)
    )
    return None if fits else f"{flag.shown} is {value}; it must {_bounds(says)}"


def _bounds(says: Option) -> str:
    """What a number must be, such as "be in [0, 1)"."""
    upper = says.most if says.below is None else says.below
    lower = says.least if says.above is None else says.above
    if upper is not None and lower is not None:
        return f"be in {'[' if says.above is None else '('}{lower:g}, {upper:g}{']' if says.below is None else ')'}"
    if upper is not None:
        return f"be {'at most' if says.below is None else 'below'} {upper:g}"
    if says.least == 0:
        return "not be negative"
    return f"be {'at least' if says.above is None else 'above'} {lower:g}"


def identity_of(arguments: Command, resolved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what makes two runs the same, as far as the command line says it: every flag that decides the result.

    Args:
        resolved: What the flags that are declared so come to, by name. None: it is not known yet, and they are missing.
    """
    flags = [flag for flag in flags_of(type(arguments), decides="result") if flag.concerns(arguments.stage)]
    identity: dict[str, Any] = {}
    for flag in flags:
        if flag.says.later and getattr(arguments, flag.name) == flag.default:
            continue
        name = flag.says.identity or flag.name
        if not flag.says.resolved:
            identity[name] = getattr(arguments, name)
        elif resolved is not None:
            identity[name] = resolved[name]
    return identity


def hyper_parameters_of(arguments: Command) -> dict[str, Any]:
    """Return what TensorBoard's HParams page lists of a command line: what changes what this stage learns."""
    flags = [flag for flag in flags_of(type(arguments)) if flag.says.in_hyper_parameters]
    return {flag.name: getattr(arguments, flag.name) for flag in flags if flag.concerns(arguments.stage)}


def owners_of(kind: type[Command]) -> dict[str, str]:
    """Return the dotted keys of the DeepSpeed JSON that follow from flags: key -> the flags, for a message."""
    owners: dict[str, list[str]] = {}
    for flag in flags_of(kind):
        for key in (*flag.says.ds_key, *flag.says.ds_follows):
            owners.setdefault(key, []).append(flag.shown)
    return {key: " and ".join(names) for key, names in owners.items()}


def ds_values_of(arguments: Command) -> dict[str, Any]:
    """Return the dotted keys of the DeepSpeed JSON that hold the value of a flag, with that value."""
    flags = flags_of(type(arguments))
    return {key: getattr(arguments, flag.name) for flag in flags for key in flag.says.ds_key}


def named_path(word: str) -> tuple[str, str]:
    """Return the name and the path of NAME=DIR; a path alone, with = behind its first slash or not, has the name ""."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and "/" not in name else ("", word)
