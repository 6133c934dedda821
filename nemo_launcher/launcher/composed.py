# SPDX-License-Identifier: Apache-2.0
"""A configuration composed by Hydra, and the exceptions of a failed composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_launcher.errors import Problem
from nemo_launcher.places import CONF

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeError, OSError, RecursionError)
"""The exceptions that Hydra raises on an invalid command line or configuration file."""


@dataclass(frozen=True)
class Composed:
    """One composed configuration, with every interpolation resolved."""

    config: dict[str, object]
    """Plain values by section."""
    choices: dict[str, str | None]
    """The chosen file of each group."""
    overrides: list[str]
    """The overrides on the command line."""
    config_name: str
    """The primary configuration file."""
    unresolved: dict[str, list[Problem]]
    """The values that could not be resolved, by top-level key; they matter only if the section is used."""
    mistakes: list[Problem]
    """Overrides that had to be left out."""
    label: str
    """The name of the run in a sweep; empty without a sweep."""
    folders: list[Path]
    """The folders in which Hydra searches for files; the first match is used."""
    notices: Sequence[Problem] = ()
    """Warnings about overrides that were left out."""

    @property
    def given(self) -> list[str]:
        """The full keys on the command line."""
        return [override.lstrip("+~").partition("=")[0] for override in self.overrides]

    def file(self, name: str) -> str:
        """Return the name of a configuration file for messages: conf/NAME.yaml, or its path in the user's folder."""
        found = self.path(name)
        return f"conf/{name}.yaml" if found == CONF / f"{name}.yaml" else str(found)

    def path(self, name: str) -> Path:
        """Return the path of a configuration file; it may not exist."""
        found = next((folder for folder in self.folders if (folder / f"{name}.yaml").is_file()), CONF)
        return found / f"{name}.yaml"
