# SPDX-License-Identifier: Apache-2.0
"""A configuration that Hydra has composed, and what Hydra raises where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher.errors import Problem

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeError, OSError, RecursionError)
"""What Hydra raises on a command line or a configuration file that it cannot make sense of."""


@dataclass(frozen=True)
class Composed:
    """One composed configuration, every interpolation resolved.

    choices: the file chosen for each group; overrides: the command line's; unresolved: for each top-level key the
    values that could not be worked out, which only matter once the section is used; mistakes: overrides that had to be
    left out; label: what sets a run of a sweep apart.
    """

    config: dict[str, Any]
    choices: dict[str, str | None]
    overrides: list[str]
    config_name: str
    unresolved: dict[str, list[Problem]]
    mistakes: list[Problem]
    label: str
