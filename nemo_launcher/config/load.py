# SPDX-License-Identifier: Apache-2.0
"""From plain values to a section's dataclass: defaults filled in, checked once, handed on as an object."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from nemo_launcher.config.schema import PathText, check, hints, meant_alternative, stays_out, variants_of
from nemo_launcher.errors import UserError

Section = TypeVar("Section")
SectionOf = TypeVar("SectionOf", covariant=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded(Generic[SectionOf]):
    """A section of the configuration, checked and complete."""

    section: SectionOf
    """Its dataclass; a key that is left out has the default that counts."""
    values: dict[str, Any]
    """What it was made of, defaults filled in; optional keys that are left out stay out: for records and archives."""


def load(values: Mapping[str, object], schema: type[Section]) -> Loaded[Section]:
    """Return a section. Raises UserError with everything that does not fit the schema."""
    problems = check(dict(values), schema, "")
    if problems:
        raise UserError(problems)
    completed: dict[str, Any] = complete(dict(values), schema)
    section: Section = _built(completed, schema)
    return Loaded(section, completed)


def complete(value: Any, schema: Any) -> Any:
    """Return a copy of `value`, which fits `schema`, with defaults for keys that it leaves out and absolute paths."""
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return value if value is None else complete(value, meant_alternative(value, typing.get_args(schema)))
    if dataclasses.is_dataclass(schema):
        return _complete_section(value, schema)
    if schema == PathText:
        return os.path.abspath(os.path.expanduser(value))
    if (variants := variants_of(schema)) is not None:
        return complete(value, variants.chosen(value))
    if typing.get_origin(schema) is typing.Annotated:
        return complete(value, typing.get_args(schema)[0])
    if typing.get_origin(schema) is list:
        return [complete(item, typing.get_args(schema)[0]) for item in value]
    return value


def _complete_section(value: dict[str, Any], schema: Any) -> dict[str, Any]:
    completed = dict(value)
    kinds = hints(schema)
    for field in dataclasses.fields(schema):
        if field.name in completed:
            completed[field.name] = complete(completed[field.name], kinds[field.name])
        elif field.default_factory is not dataclasses.MISSING:
            completed[field.name] = field.default_factory()
        elif not stays_out(field) and field.default is not dataclasses.MISSING:
            completed[field.name] = field.default
    return completed


def _built(value: Any, schema: Any) -> Any:
    """Return complete values that fit `schema` as objects of its dataclasses."""
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _built(value, meant_alternative(value, arguments))
    if (variants := variants_of(schema)) is not None:
        return _built(value, variants.chosen(value))
    if origin is typing.Annotated:
        return _built(value, arguments[0])
    if origin is list:
        return [_built(item, arguments[0]) for item in value]
    if dataclasses.is_dataclass(schema) and isinstance(schema, type):
        kinds = hints(schema)
        return schema(**{key: _built(item, kinds[key]) for key, item in value.items()})
    return value
