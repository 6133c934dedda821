# SPDX-License-Identifier: Apache-2.0
"""Locations of conf/ and launcher_scripts/, at the top of a checkout or in the installed package; their commands."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "conf").is_dir()
"""Whether pip has installed the package; False in a checkout, installed as editable or not."""
_HOME = PACKAGE if INSTALLED else PACKAGE.parent
CONF = _HOME / "conf"
LAUNCHER_SCRIPTS = _HOME / "launcher_scripts"
LAUNCH = "nemo-launcher launch" if INSTALLED else "python3 main.py"
"""The command that launches, as messages show it."""


def fetch_base_model() -> str:
    """Return the command that fetches the quickstart's base model."""
    if not INSTALLED:
        return "make base-model"
    return shlex.join([sys.executable, str(LAUNCHER_SCRIPTS / "fetch_base_model.py")])


def folder_beside(scripts: str | os.PathLike[str], name: str) -> Path:
    """Return the folder `name` (data, results, models) that belongs to a launcher_scripts folder.

    It is a subfolder of launcher_scripts, as documented. Nothing is ever written into an installed package, so for the
    package's own launcher_scripts it is in the working directory instead.
    """
    if INSTALLED and Path(scripts) == LAUNCHER_SCRIPTS:
        return Path.cwd() / name
    return Path(scripts) / name
