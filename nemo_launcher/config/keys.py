# SPDX-License-Identifier: Apache-2.0
"""Look up keys in a schema: the type at a path of keys, all keys, and which values may be shown."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import TypeGuard

from nemo_launcher.config.fields import Hidden
from nemo_launcher.config.variants import Variants

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance


def _alternatives(schema: object) -> tuple[object, ...]:
    """Return the members of a union or of variants, or the type itself."""
    schema = _as_union(schema)
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        return typing.get_args(schema)
    return (schema,)


def variants_of(schema: object) -> Variants | None:
    """Return the Variants of a section type; None for any other type."""
    parts = typing.get_args(schema)[1:] if typing.get_origin(schema) is typing.Annotated else ()
    return next((part for part in parts if isinstance(part, Variants)), None)


def _as_union(schema: object) -> object:
    """Return the union of a type's variants, or any other type unchanged."""
    variants = variants_of(schema)
    return schema if variants is None else variants.schema()


def is_section(schema: object) -> TypeGuard[type[DataclassInstance]]:
    """Return whether a type is the dataclass of a section."""
    return isinstance(schema, type) and dataclasses.is_dataclass(schema)


_HINTS: dict[type[DataclassInstance], dict[str, object]] = {}


def hints(schema: type[DataclassInstance]) -> dict[str, object]:
    """Return the types of a section's keys."""
    if schema not in _HINTS:
        found = typing.get_type_hints(schema, include_extras=True)
        _HINTS[schema] = {field.name: found[field.name] for field in dataclasses.fields(schema)}
    return _HINTS[schema]


def type_at(schema: object, keys: list[str]) -> object:
    """Return the type of the value at a path of keys; None if the schema has no such key."""
    if not keys:
        return schema
    variants = variants_of(schema)
    if variants is not None and keys == [variants.key]:
        return variants.names()
    for alternative in _alternatives(schema):
        if typing.get_origin(alternative) is typing.Annotated:
            found = type_at(typing.get_args(alternative)[0], keys)
        elif is_section(alternative):
            kinds = hints(alternative)
            found = type_at(kinds[keys[0]], keys[1:]) if keys[0] in kinds else None
        elif typing.get_origin(alternative) is dict:
            found = type_at(typing.get_args(alternative)[1], keys[1:])
        elif typing.get_origin(alternative) is list and keys[0].isdigit():
            found = type_at(typing.get_args(alternative)[0], keys[1:])
        else:
            found = object if alternative is object else None
        if found is not None:
            return found
    return None


def is_shown(schema: object) -> bool:
    """Return whether values of this type may be shown: every key is known, and none is Hidden."""
    schema = _as_union(schema)
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if is_section(schema):
        return all(map(is_shown, hints(schema).values()))
    if origin is typing.Annotated:
        return not any(isinstance(part, Hidden) for part in arguments[1:]) and is_shown(arguments[0])
    if origin in (typing.Union, types.UnionType, list):
        return all(map(is_shown, arguments))
    return origin is not dict and schema is not object


def is_open(schema: object) -> bool:
    """Return whether a value of this type may have arbitrary keys or is Hidden."""
    schema = _as_union(schema)
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin in (typing.Union, types.UnionType):
        return any(map(is_open, arguments))
    if origin is typing.Annotated:
        return any(isinstance(part, Hidden) for part in arguments[1:]) or is_open(arguments[0])
    return origin is dict or schema is object


def all_keys(schema: object, prefix: str) -> Iterator[str]:
    """Yield every full key of `schema`, including sections."""
    for alternative in _alternatives(schema):
        if typing.get_origin(alternative) is typing.Annotated:
            yield from all_keys(typing.get_args(alternative)[0], prefix)
        elif is_section(alternative):
            for name, hint in hints(alternative).items():
                yield f"{prefix}{name}"
                yield from all_keys(hint, f"{prefix}{name}.")


def has_keys(schema: object) -> bool:
    """Return whether a value of this type, or of its entries, has keys."""
    schema = _as_union(schema)
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin is list or origin in (typing.Union, types.UnionType):
        return any(map(has_keys, arguments))
    return origin is dict or is_section(schema)
