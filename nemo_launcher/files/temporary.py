# SPDX-License-Identifier: Apache-2.0
"""Temporary folders with enough room: TMPDIR may be small."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nemo_launcher.files.atomic import scratch_folder

_TEMPORARY_FOLDERS = ("/tmp", "/var/tmp")
_MARGIN_BYTES = 1 << 16


def roomy_folder(num_bytes: int) -> Path:
    """Return a folder with room for `num_bytes` of temporary files: TMPDIR, or another one if that is too small.

    If no folder has room, return the one with the most free space; writing there then raises the disk's error.
    """
    places = dict.fromkeys([tempfile.gettempdir(), *_TEMPORARY_FOLDERS, os.getcwd()])
    free = {place: shutil.disk_usage(place).free for place in places if os.access(place, os.W_OK | os.X_OK)}
    wanted = num_bytes + num_bytes // 8 + _MARGIN_BYTES
    return Path(next((place for place in free if free[place] >= wanted), max(free, key=free.__getitem__)))


@contextlib.contextmanager
def temporary_folder(num_bytes: int) -> Iterator[Path]:
    """Yield an empty private folder with room for `num_bytes`; it is removed at the end."""
    with scratch_folder(roomy_folder(num_bytes) / "nemo-launcher") as folder:
        yield folder
