"""Checks a configuration section against a dataclass: every unknown key and every wrong type, not the first alone."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterable
from typing import Any

from nemo_launcher.errors import Problem, did_you_mean, nearest

OPTIONAL: Any = object()
"""The default of a key that may be left out and then stays out; any other default is filled in."""


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """The smallest value that makes sense; part of an Annotated type."""

    minimum: float


PathText = typing.Annotated[str, "path"]
"""Text that names a file or folder."""


def check(value: Any, schema: Any, where: str) -> list[Problem]:
    """Return everything in `value` that does not fit `schema`; `where` is the full key of `value`."""
    if dataclasses.is_dataclass(schema):
        return _check_section(value, schema, where)
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin is typing.Annotated:
        return check(value, arguments[0], where) or _check_bound(value, arguments[1], where)
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, arguments, schema, where)
    if origin is typing.Literal:
        return [] if value in arguments else [_wrong_choice(value, arguments, where)]
    if origin is list and isinstance(value, list):
        return [problem for i, item in enumerate(value) for problem in check(item, arguments[0], f"{where}.{i}")]
    if origin is dict and isinstance(value, dict):
        return [problem for key, item in value.items() for problem in check(item, arguments[1], f"{where}.{key}")]
    if _fits_plain_type(value, schema):
        return []
    return [Problem(where, f"must be {describe(schema)}, not {_shown(value)}", _example(schema, where))]


def complete(value: Any, schema: Any) -> Any:
    """Return a copy of `value`, which fits `schema`, with defaults for keys that it leaves out and absolute paths."""
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return value if value is None else complete(value, _meant_alternative(value, typing.get_args(schema)))
    if dataclasses.is_dataclass(schema):
        return _complete_section(value, schema)
    if schema == PathText:
        return os.path.abspath(os.path.expanduser(value))
    if typing.get_origin(schema) is list:
        return [complete(item, typing.get_args(schema)[0]) for item in value]
    return value


def accepts(schema: Any, keys: list[str]) -> bool:
    """Whether `schema` has a place for the value at this path of keys."""
    if not keys:
        return True
    schema = _section_of(schema)
    if dataclasses.is_dataclass(schema):
        hints = _hints(schema)
        return keys[0] in hints and accepts(hints[keys[0]], keys[1:])
    return typing.get_origin(schema) is dict


def suggest_key(key: str, known: Iterable[str], prefix: str) -> str:
    """Return the sentence that leads from an unknown key to the one that was meant, written in full."""
    match = nearest(key, known)
    return f"did you mean {prefix + match!r}?" if match is not None else did_you_mean(key, known)


def describe(schema: Any) -> str:
    """Return what `schema` accepts, in words."""
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is list:
        return f"a list ([...]), each entry {describe(arguments[0])}"
    if origin is dict or dataclasses.is_dataclass(schema):
        return "a section with keys"
    return _PLAIN_NAMES.get(schema, str(schema))


_PLAIN_NAMES: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def _check_section(value: Any, schema: Any, where: str) -> list[Problem]:
    if not isinstance(value, dict):
        return [Problem(where, f"must be a section with keys, not {_shown(value)}")]
    hints = _hints(schema)
    prefix = f"{where}." if where else ""
    problems = []
    for key, item in value.items():
        if key in hints:
            problems += check(item, hints[key], f"{prefix}{key}")
        else:
            problems.append(Problem(f"{prefix}{key}", "unknown key", suggest_key(str(key), hints, prefix)))
    for field in dataclasses.fields(schema):
        if field.name not in value and field.default is dataclasses.MISSING:
            problems.append(Problem(f"{prefix}{field.name}", "missing", f"give it {describe(hints[field.name])}"))
    return problems


def _check_union(value: Any, alternatives: tuple[Any, ...], schema: Any, where: str) -> list[Problem]:
    failures = [check(value, alternative, where) for alternative in alternatives]
    if not all(failures):
        return []
    for alternative, problems in zip(alternatives, failures, strict=True):
        if _same_kind(value, alternative):  # the one that was meant: its own words say more than "one of these"
            return problems
    return [Problem(where, f"must be {describe(schema)}, not {_shown(value)}", _example(alternatives[0], where))]


def _same_kind(value: Any, schema: Any) -> bool:
    """Whether `value` is a section, list or word where `schema` wants one."""
    origin = typing.get_origin(schema)
    if isinstance(value, dict):
        return dataclasses.is_dataclass(schema) or origin is dict
    if isinstance(value, list):
        return origin is list
    if origin is typing.Annotated:
        return _fits_plain_type(value, typing.get_args(schema)[0])
    return origin is typing.Literal and isinstance(value, str)


def _check_bound(value: Any, bound: Any, where: str) -> list[Problem]:
    if not isinstance(bound, AtLeast) or value >= bound.minimum:
        return []
    return [Problem(where, f"must be at least {bound.minimum:g}, not {value}", f"{where}={bound.minimum:g}")]


def _wrong_choice(value: Any, choices: tuple[Any, ...], where: str) -> Problem:
    return Problem(where, f"{_shown(value)} is not a choice", did_you_mean(str(value), [str(c) for c in choices]))


def _fits_plain_type(value: Any, schema: Any) -> bool:
    if schema is Any:
        return True
    if schema is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if schema is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(schema, type) and isinstance(value, schema)


def _example(schema: Any, where: str) -> str:
    if typing.get_origin(schema) is typing.Annotated:
        schema = typing.get_args(schema)[0]
    if typing.get_origin(schema) is list:
        return f"write a list: '{where}=[...]'"
    if schema is str:
        return f"on the command line: \"{where}='...'\" (the inner quotes make it text)"
    example = {bool: "True", int: "1", float: "0.1"}.get(schema)
    return f"for example {where}={example}" if example else ""


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"{value!r}"


def _complete_section(value: dict[str, Any], schema: Any) -> dict[str, Any]:
    completed = dict(value)
    hints = _hints(schema)
    for field in dataclasses.fields(schema):
        if field.name in completed:
            completed[field.name] = complete(completed[field.name], hints[field.name])
        elif field.default is not OPTIONAL and field.default is not dataclasses.MISSING:
            completed[field.name] = field.default
    return completed


def _meant_alternative(value: Any, alternatives: tuple[Any, ...]) -> Any:
    return next(alternative for alternative in alternatives if not check(value, alternative, ""))


def _section_of(schema: Any) -> Any:
    """The section in a type such as `Section | None`, or the type itself."""
    if typing.get_origin(schema) not in (typing.Union, types.UnionType):
        return schema
    alternatives = typing.get_args(schema)
    sections = [a for a in alternatives if dataclasses.is_dataclass(a) or typing.get_origin(a) is dict]
    return sections[0] if sections else schema


def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)
