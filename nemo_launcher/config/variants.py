# SPDX-License-Identifier: Apache-2.0
"""Sections whose set of keys depends on the value of one key, such as `type`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping

from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class Variants:
    """Marks an Annotated section type whose keys are those of the dataclass chosen by the value of `key`."""

    key: str
    """The deciding key; each dataclass has it too."""
    by_name: Callable[[], Mapping[str, type[DataclassInstance]]]
    """Returns {value of `key`: dataclass}."""

    def schema(self) -> object:
        """Return the union of all dataclasses."""
        return typing.Union[tuple(self.by_name().values())]  # noqa: UP007 - made at run time

    def chosen(self, section: object) -> type[DataclassInstance] | None:
        """Return the dataclass that a section chooses; None if its choice is absent or unknown."""
        name = section.get(self.key) if isinstance(section, dict) else None
        return self.by_name().get(name) if isinstance(name, str) else None

    def names(self) -> object:
        """Return the type of `key`'s value."""
        return typing.Literal[tuple(self.by_name())]

    def owners(self, key: str) -> list[str]:
        """Return the values of the deciding key whose sections have the key `key`."""
        return [name for name, kind in self.by_name().items() if key in _names(kind)]

    def foreign_key(self, key: str, section: Mapping[str, object], where: str) -> Problem | None:
        """Return the problem of a key that only other variants have; None if no variant has it."""
        owners = self.owners(key)
        if not owners:
            return None
        what = f"is a setting of {' and '.join(owners)}, and {self.key} is {section[self.key]}"
        return Problem(f"{where}.{key}", what, f"leave it out, or {override(f'{where}.{self.key}', owners[0])}")

    def foreign_keys(self, section: object) -> list[str]:
        """Return the keys of a section that other variants have and the chosen one lacks."""
        chosen = self.chosen(section)
        if chosen is None or not isinstance(section, dict):
            return []
        return [key for key in section if key not in _names(chosen) and self.owners(key)]


def _names(kind: type[DataclassInstance]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
