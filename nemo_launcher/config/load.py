# SPDX-License-Identifier: Apache-2.0
"""Load plain values into a section's dataclass: check them once and fill in the defaults."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from nemo_launcher.config.constraints import PathForm
from nemo_launcher.config.fields import says_nothing, stays_out
from nemo_launcher.config.keys import hints, is_section, variants_of
from nemo_launcher.config.layers import LayerNumbers
from nemo_launcher.config.schema import check, meant_alternative
from nemo_launcher.errors import UserError

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")
SectionOf = TypeVar("SectionOf", covariant=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded(Generic[SectionOf]):
    """A checked and completed section of the configuration."""

    section: SectionOf
    """The section as its dataclass; absent keys have their effective defaults."""
    values: dict[str, Any]
    """The same as plain values for records and archives, with defaults but without absent optional keys."""


def load(values: Mapping[str, object], schema: type[Section]) -> Loaded[Section]:
    """Check values against a schema and return the section. Raises UserError with all mistakes."""
    problems = check(dict(values), schema, "")
    if problems:
        raise UserError(problems)
    return load_checked(values, schema)


def load_checked(values: Mapping[str, object], schema: type[Section]) -> Loaded[Section]:
    """Return a section of values that are known to fit the schema; keys that it does not know are in `values` alone."""
    completed = complete(values, schema)
    return Loaded(_build_section(completed, schema), completed)


def _complete_value(value: object, schema: object) -> object:
    """Return a copy of `value`, which fits `schema`, with defaults, absolute paths, and layers in their normal form."""
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return value if value is None else _complete_value(value, meant_alternative(value, typing.get_args(schema)))
    if isinstance(value, dict) and is_section(schema):
        return complete(value, schema)
    if (variants := variants_of(schema)) is not None:
        return _complete_value(value, variants.chosen(value))
    if typing.get_origin(schema) is typing.Annotated:
        kind, *parts = typing.get_args(schema)
        form = next((part for part in parts if isinstance(part, PathForm)), None)
        if isinstance(value, str) and form is not None:
            return form.absolute(value)
        selection = next((part for part in parts if isinstance(part, LayerNumbers)), None)
        return _complete_value(value, kind) if selection is None else selection.normal(value)
    if isinstance(value, list) and typing.get_origin(schema) is list:
        return [_complete_value(item, typing.get_args(schema)[0]) for item in value]
    return value


def complete(values: Mapping[str, object], schema: type[DataclassInstance]) -> dict[str, Any]:
    """Return a copy of a section that fits `schema`.

    Absent keys have their defaults, paths are absolute, and selections of layers have their normal form.
    """
    completed = dict(values)
    kinds = hints(schema)
    for field in dataclasses.fields(schema):
        if field.name in completed:
            completed[field.name] = _complete_value(completed[field.name], kinds[field.name])
            if says_nothing(field, completed[field.name]):
                del completed[field.name]
        elif field.default_factory is not dataclasses.MISSING:
            completed[field.name] = field.default_factory()
        elif not stays_out(field) and field.default is not dataclasses.MISSING:
            completed[field.name] = field.default
    return completed


def _build(value: object, schema: object) -> object:
    """Return completed values that fit `schema` as instances of its dataclasses."""
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _build(value, meant_alternative(value, arguments))
    if (variants := variants_of(schema)) is not None:
        return _build(value, variants.chosen(value))
    if origin is typing.Annotated:
        return _build(value, arguments[0])
    if isinstance(value, list) and origin is list:
        return [_build(item, arguments[0]) for item in value]
    if isinstance(value, dict) and is_section(schema):
        return _build_section(value, schema)
    return value


def _build_section(values: Mapping[str, object], schema: type[Section]) -> Section:
    kinds, make = hints(schema), typing.cast("Callable[..., Section]", schema)
    return make(**{key: _build(item, kinds[key]) for key, item in values.items() if key in kinds})
