# SPDX-License-Identifier: Apache-2.0
"""A configuration that Hydra has composed, and what Hydra raises where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher.errors import Problem
from nemo_launcher.places import CONF

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeError, OSError, RecursionError)
"""What Hydra raises on a command line or a configuration file that it cannot make sense of."""


@dataclass(frozen=True)
class Composed:
    """One composed configuration, with every interpolation resolved."""

    config: dict[str, object]
    """Plain values by section."""
    choices: dict[str, str | None]
    """The file chosen for each group."""
    overrides: list[str]
    """Those of the command line."""
    config_name: str
    """The file that the configuration starts from."""
    unresolved: dict[str, list[Problem]]
    """By top-level key, the values that could not be resolved; they matter once the section is used."""
    mistakes: list[Problem]
    """Overrides that had to be left out."""
    label: str
    """What tells a run of a sweep apart; empty without a sweep."""
    folders: list[Path]
    """Where Hydra looked for files, the first that has one counts."""

    def file(self, name: str) -> str:
        """Return a file of the configuration as messages show it: conf/NAME.yaml, or its path in the user's folder."""
        found = next((folder for folder in self.folders if (folder / f"{name}.yaml").is_file()), CONF)
        return f"conf/{name}.yaml" if found == CONF else str(found / f"{name}.yaml")
