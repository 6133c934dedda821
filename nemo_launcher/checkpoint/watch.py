# SPDX-License-Identifier: Apache-2.0
"""Detection of writes to a base's files while it is in use: its weights are memory-mapped, not copied.

Replacing a file by another with the same name, as conversions and downloads do, does not affect the mapping.
Overwriting it in place, as `cp` does, changes the model during a training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

State = tuple[int, int, int, int]
"""Device, inode, size in bytes, modification time in ns."""


class WatchedFiles:
    """The state of an archive's file, or of all files of an extracted one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._states: Mapping[Path, State] = {}
        self.look()

    def look(self) -> None:
        """Record the present state of the files as unchanged."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        self._states = {file: state for file in files if (state := _state(file)) is not None}

    def was_written_to(self) -> bool:
        """Return whether a file was written in place, or its modification time changed."""
        for file, before in self._states.items():
            now = _state(file)
            if now is not None and now[:2] == before[:2] and now != before:
                return True
        return False


def _state(file: Path) -> State | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
