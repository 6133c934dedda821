# SPDX-License-Identifier: Apache-2.0
"""Where conf/ and launcher_scripts/ are: at the top of a checkout, or in the installed package."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
_HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONF = _HOME / "conf"
LAUNCHER_SCRIPTS = _HOME / "launcher_scripts"


def folder_beside(scripts: str | os.PathLike[str], name: str) -> Path:
    """Return the folder `name` (data, results, models) that belongs to a launcher_scripts folder.

    It lies in that folder, as documented, but for the installed package's own, into which nothing is written: then it
    lies in the working directory.
    """
    if _HOME == PACKAGE and Path(scripts) == LAUNCHER_SCRIPTS:
        return Path.cwd() / name
    return Path(scripts) / name
