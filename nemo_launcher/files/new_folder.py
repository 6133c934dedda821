# SPDX-License-Identifier: Apache-2.0
"""Outputs that must be new, and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_launcher.errors import Problem
from nemo_launcher.files.atomic import flush_to_disk, scratch_folder


def existing(target: str | os.PathLike[str], where: str) -> list[Problem]:
    """Return a Problem if a file, folder or link is at `target` already. where: the option that names it."""
    if not os.path.lexists(target):
        return []
    return [Problem(f"{where} {target}", "exists already; nothing was changed", "name another one, or remove it first")]


def new_nemo(target: str, where: str) -> list[Problem]:
    """Return what prevents a new `.nemo` file at `target`; where: the option that names it."""
    problems = existing(target, where)
    if not target.endswith(".nemo"):
        problems.append(Problem(where, f"{target} does not end in .nemo", "name a .nemo file"))
    return problems


@contextlib.contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which gets that name at the end; after an error it is removed.

    Raises WriteError, which names `target`, if it cannot be written or exists by then.
    """
    with scratch_folder(target) as scratch:
        folder = scratch / "new"  # the scratch folder itself is private
        folder.mkdir()
        yield folder
        mode = folder.stat().st_mode & 0o666  # some libraries write files for their owner alone
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                path.chmod(mode)
                flush_to_disk(path)
        os.rename(folder, target)
