# SPDX-License-Identifier: Apache-2.0
"""Locations of conf/ and launcher_scripts/: the top of a checkout, or the installed package."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = _HOME / "conf"
LAUNCHER_SCRIPTS = _HOME / "launcher_scripts"


def folder_beside(scripts: str | os.PathLike[str], name: str) -> Path:
    """Return the folder `name` (data, results, models) that belongs to a launcher_scripts folder.

    It is a subfolder of launcher_scripts, as documented. Nothing is ever written into an installed package, so for the
    package's own launcher_scripts it is in the working directory instead.
    """
    if _HOME == PACKAGE and Path(scripts) == LAUNCHER_SCRIPTS:
        return Path.cwd() / name
    return Path(scripts) / name
