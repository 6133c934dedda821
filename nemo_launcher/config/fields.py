# SPDX-License-Identifier: Apache-2.0
"""Declarations for the fields of a section's dataclass, besides the constraints."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from nemo_launcher.config.constraints import Lines, PathForm

_STAYS_OUT = "stays out"
_OMITTED = "omitted"


def optional(default: object = None) -> Any:
    """Return the default of a key that stays absent when it is left out; other defaults are filled in.

    default: the effective value of an absent key (config.load); may be None even if the key does not accept null.
    """
    return dataclasses.field(default=default, metadata={_STAYS_OUT: True})


def omitted(default: object) -> Any:
    """Return the default of a key that stays absent when it is left out, and is removed when it has no other value.

    A section that sets nothing counts as left out. So configurations and archives that do not use the key do not
    mention it.
    """
    return dataclasses.field(default=default, metadata={_STAYS_OUT: True, _OMITTED: True})


def says_nothing(field: dataclasses.Field[object], value: object) -> bool:
    """Return whether a completed value of a key is removed from its section."""
    return _OMITTED in field.metadata and value in (field.default, {})


def stays_out(field: dataclasses.Field[object]) -> bool:
    """Return whether a key that is left out stays absent in the completed section."""
    return _STAYS_OUT in field.metadata


PathText = typing.Annotated[str, PathForm()]
"""Text that names a file or folder."""
PathOrHubText = typing.Annotated[str, PathForm(or_hub=True)]
"""Text that names a file or folder, or something on the Hugging Face Hub."""
LinesText = typing.Annotated[str, Lines()]
"""Text that may have several lines."""


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Marks an Annotated type whose values may be secret and are masked in messages and logs."""
