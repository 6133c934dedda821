# SPDX-License-Identifier: Apache-2.0
"""Whether paths name the same file or folder, whatever links and spellings they go by."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def absolute(path: Path) -> Path:
    """Return a path from the root, links kept."""
    return Path(os.path.abspath(path))


def is_below(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or lies in it, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are one file: by links of both kinds, and where none is there yet but for case."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return not one.exists() and not other.exists() and spelt_once(one) == spelt_once(other)


def spelt_once(path: Path) -> str:
    """Return a path in one spelling: some file systems take names that differ by case or Unicode form for one."""
    return unicodedata.normalize("NFKC", os.path.realpath(path)).casefold()
