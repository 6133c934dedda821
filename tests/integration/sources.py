# SPDX-License-Identifier: Apache-2.0
"""A copy of what the project's wheel is built from, without what jobs have written beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.jobs import REPOSITORY

SOURCES = ("nemo_launcher", "conf", "launcher_scripts", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def copy_sources(folder: Path) -> None:
    """Copy the sources into `folder`, which does not exist yet."""
    folder.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_file():
            shutil.copy(REPOSITORY / name, folder / name)
        else:
            leave_out = shutil.ignore_patterns("__pycache__", "models", "results", "prompt_data", "cache")
            keep_all = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, folder / name, ignore=leave_out if "scripts" in name else keep_all)
