# SPDX-License-Identifier: Apache-2.0
"""Compare paths, taking links and spelling into account."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def absolute(path: Path) -> Path:
    """Return the absolute path without resolving links."""
    return Path(os.path.abspath(path))


def is_below(path: Path, folder: Path) -> bool:
    """Return whether a path is `folder` or inside it, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are the same file, through links or, if neither exists, except for case."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return not one.exists() and not other.exists() and spelt_once(one) == spelt_once(other)


def spelt_once(path: Path) -> str:
    """Return a path without case and Unicode differences, which some file systems ignore."""
    return unicodedata.normalize("NFKC", os.path.realpath(path)).casefold()
