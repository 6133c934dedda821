# SPDX-License-Identifier: Apache-2.0
"""Typed access to sections that were parsed from a file; null and absent keys give None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from nemo_launcher.errors import Problem, UserError

Section = Mapping[str, object]
"""A section of a configuration that was parsed from YAML or JSON."""

T = TypeVar("T")


def whole(section: Section, key: str) -> int | None:
    """Return a whole number. Raises UserError for a value of another type."""
    value = section.get(key)
    return None if value is None else _of(int, key, value, "a whole number")


def number(section: Section, key: str) -> float | None:
    """Return a number. Raises UserError for a value of another type."""
    value = section.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return None if value is None else _of(float, key, value, "a number")


def text(section: Section, key: str) -> str | None:
    """Return a string. Raises UserError for a value of another type."""
    value = section.get(key)
    return None if value is None else _of(str, key, value, "text")


def below(section: Section, key: str) -> Section:
    """Return the section at a key; empty when absent. Raises UserError for a value of another type."""
    value = section.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise _wrong(key, value, "a section")
    return value or {}


def entries(section: Section, key: str) -> list[Section]:
    """Return the list of sections at a key; empty when absent. Raises UserError for a value of another type."""
    value = section.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise _wrong(key, value, "a list of sections")
    return value


def _of(kind: type[T], key: str, value: object, what: str) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _wrong(key, value, what)
    return value


def _wrong(key: str, value: object, what: str) -> UserError:
    return UserError(Problem(key, f"a {type(value).__name__} is not {what}", f"write {what}"))
