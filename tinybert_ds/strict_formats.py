"""Strict readers of what users write in YAML and JSON: nothing is guessed, dropped or expanded.

YAML is scalars, lists and maps, every scalar a string as it is written: no aliases, which can stand for more than the
memory holds, and no tags. In both formats a key stands once in its map.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tinybert_ds.errors import ConfigError, UserError
from tinybert_ds.foreign_text import quoted, read_text, shown

Yaml = Any
"""A string, a list of these or a map from strings to these."""

_DEEPEST = 16
_DEEPEST_JSON = 64
_LONGEST = 1 << 20  # the parser takes seconds for more, and nobody writes it by hand
_PLAIN_TAGS = {None, *(f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "map"))}


class NoJsonError(ValueError):
    """A text that is no JSON, or none that means one thing."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.line, self.column = reason, line, column


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text, in UTF-8 where it is bytes.

    Raises:
        NoJsonError: It is no JSON, holds a key twice, nests too deeply or has a number of thousands of digits.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise NoJsonError(error.msg, error.lineno, error.colno) from error
    except NoJsonError:
        raise
    except UnicodeDecodeError as error:
        raise NoJsonError("it is no UTF-8") from error
    except RecursionError as error:
        raise NoJsonError("brackets within brackets, too deep to be read") from error
    except ValueError as error:  # of int()
        raise NoJsonError("a number of thousands of digits") from error
    level = [value]
    for _ in range(_DEEPEST_JSON):
        lists = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list)]
        level = [child for children in lists for child in children]
        if not level:
            return value
    raise NoJsonError(f"more than {_DEEPEST_JSON} levels of lists and objects")


def read_json(path: Path, what: str, error: type[UserError] = ConfigError) -> Any:
    """Return the value of a small JSON file.

    Args:
        what: What it was given as, such as "--deepspeed_config", for messages.

    Raises:
        UserError: `error`, with file, line and column: it cannot be read, or see `parse_json`.
    """
    text = read_text(path, what, error)
    try:
        return parse_json(text)
    except NoJsonError as problem:
        place = f", line {problem.line}, column {problem.column}" if problem.line else ""
        raise error(f"{what}: {shown(path, 400)}{place}: not valid JSON: {problem.reason}") from problem


def read_yaml(path: Path, what: str) -> Yaml:
    """Return the value of a YAML file: strings as they are written, lists and maps.

    Args:
        what: What it was given as, such as "--task_file", for messages.

    Raises:
        ConfigError: It cannot be read, is no YAML, or holds what is no scalar, list or map of strings; names the line.
    """
    text = read_text(path, what)
    place = f"{what}: {shown(path, 400)}"
    if len(text) > _LONGEST:
        raise ConfigError(f"{place} has {len(text):,} characters; at most {_LONGEST:,} are read")
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        next(events)  # the stream begins
        if isinstance(next(events), yaml.StreamEndEvent):
            return ""
        value = _yaml_value(events, next(events), place, 0)
        next(events)  # the document ends
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise ConfigError(f"{_at(place, event)}: a second document begins; give one")
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        hint = "; put a value that begins with * into quotation marks" if "alias" in str(error.context) else ""
        raise ConfigError(f"{place}{where}: not valid YAML: {shown(error.problem or error.context)}{hint}") from error
    except yaml.YAMLError as error:  # a character that YAML forbids
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise ConfigError(f"{place}, line {line}: not valid YAML: {shown(error, 200)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NoJsonError(f"the key {quoted(twice)} stands twice in one object")
    return found


def _yaml_value(events: Iterator[Any], event: Any, place: str, depth: int) -> Yaml:
    """Return the value that begins with an event; takes all its events."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise ConfigError(
            f"{_at(place, event)}: an anchor or alias ({shown(event.anchor)}); write the value out where it belongs, "
            "or put a value that begins with & or * into quotation marks"
        )
    if event.tag not in _PLAIN_TAGS:
        raise ConfigError(f"{_at(place, event)}: the tag {shown(event.tag)}; all values are text, leave it out")
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    if depth == _DEEPEST:
        raise ConfigError(f"{_at(place, event)}: more than {_DEEPEST} levels of lists and maps; this cannot be meant")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(inner := next(events), yaml.SequenceEndEvent):
            items.append(_yaml_value(events, inner, place, depth + 1))
        return items
    content: dict[str, Yaml] = {}
    while not isinstance(inner := next(events), yaml.MappingEndEvent):
        key = _yaml_value(events, inner, place, depth + 1)
        if not isinstance(key, str):
            raise ConfigError(f"{_at(place, inner)}: a list or map as a key; keys are words")
        if key in content:
            raise ConfigError(f"{_at(place, inner)}: the key {quoted(key)} stands twice; keep one of them")
        content[key] = _yaml_value(events, next(events), place, depth + 1)
    return content


def _at(place: str, event: Any) -> str:
    return f"{place}, line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"
