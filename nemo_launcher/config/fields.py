# SPDX-License-Identifier: Apache-2.0
"""What the fields of a section's dataclass are declared with, beside the constraints."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from nemo_launcher.config.constraints import Lines, PathForm

_STAYS_OUT = "stays out"


def optional(default: object = None) -> Any:
    """Return the default of a key that may be left out and then stays out; any other default is filled in.

    default: what counts where the key is absent (config.load); None also where null is not a value of the key.
    """
    return dataclasses.field(default=default, metadata={_STAYS_OUT: True})


def stays_out(field: dataclasses.Field[object]) -> bool:
    """Return whether a key that is left out stays out of the completed section."""
    return _STAYS_OUT in field.metadata


PathText = typing.Annotated[str, PathForm()]
"""Text that names a file or folder."""
LinesText = typing.Annotated[str, Lines()]
"""Text that may have several lines."""


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Part of an Annotated type: what it holds may be secret, and is not shown in messages and logs."""
