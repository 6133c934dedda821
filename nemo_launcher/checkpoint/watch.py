# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a base are written to while it is in use: its weights are mapped into memory, not copied.

A file that is replaced by another of the same name, as conversions and downloads do, leaves what is mapped alone; one
that is overwritten in place, as `cp` does, changes a model in the middle of a training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

State = tuple[int, int, int, int]
"""Device, inode, size in bytes, time of the last change in ns."""


class WatchedFiles:
    """The file of an archive, or all files of an extracted one, as they are now."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._states: Mapping[Path, State] = {}
        self.look()

    def look(self) -> None:
        """Take the files as they are for unchanged."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        self._states = {file: state for file in files if (state := _state(file)) is not None}

    def written_to(self) -> bool:
        """Return whether a file was written to, or its date set, in place."""
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
