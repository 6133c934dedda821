# SPDX-License-Identifier: Apache-2.0
"""Declarations for the fields of a section's dataclass, besides the constraints."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from nemo_launcher.config.constraints import Lines, PathForm

_STAYS_OUT = "stays out"


def optional(default: object = None) -> Any:
    """Return the default of a key that stays absent when it is left out; other defaults are filled in.

    default: the effective value of an absent key (config.load); may be None even if the key does not accept null.
    """
    return dataclasses.field(default=default, metadata={_STAYS_OUT: True})


def stays_out(field: dataclasses.Field[object]) -> bool:
    """Return whether a key that is left out stays absent in the completed section."""
    return _STAYS_OUT in field.metadata


PathText = typing.Annotated[str, PathForm()]
"""Text that names a file or folder."""
LinesText = typing.Annotated[str, Lines()]
"""Text that may have several lines."""


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Marks an Annotated type whose values may be secret and are masked in messages and logs."""
