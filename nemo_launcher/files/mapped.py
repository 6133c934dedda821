# SPDX-License-Identifier: Apache-2.0
"""Files that are mapped into memory, and what happens when one is cut short while it is in use.

Reading beyond the new end of a mapped file ends a process by SIGBUS, without a word: no exception is raised, and
Python's own signal handlers never run, as the instruction that failed is tried again. The handler here is called by
the C library in the thread that failed. It names the file and ends the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nemo_launcher import exit_status
from nemo_launcher.errors import Problem, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_handler: object = None  # kept, as the C library holds its address alone
_ending = threading.Lock()
_ends: dict[tuple[int, int, str], int] = {}
"""How far each file is mapped, in bytes, by device, inode and path."""


def map_bytes(path: Path, offset: int, size: int) -> NDArray[np.uint8]:
    """Return `size` bytes of a file from `offset` on, [size], mapped copy-on-write.

    Raises UserError where the file ends before them, OSError where it cannot be read.
    """
    import numpy as np  # the launcher, which reads headers alone, does without

    if size == 0:
        return np.empty(0, dtype=np.uint8)
    name_when_cut_short(path, offset + size)
    return np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(size,))


def name_when_cut_short(path: Path, end: int) -> None:
    """Let this process say so when it ends because a file that it has mapped up to `end` was cut short.

    Raises UserError where it is shorter already.
    """
    global _handler
    found = path.stat()
    if found.st_size < end:
        what = f"was cut short while it was read: it has {found.st_size:,} of {end:,} bytes"
        raise UserError(Problem(str(path), what, "copy it again"))
    key = found.st_dev, found.st_ino, os.path.abspath(path)
    _ends[key] = max(end, _ends.get(key, 0))
    if _handler is None and sys.platform == "linux":
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
        ctypes.CDLL(None).signal(signal.SIGBUS, _handler)


def _end(number: int) -> NoReturn:
    _ending.acquire()  # never given back: another thread that fails meanwhile waits here for the end
    lines = [f"{file}: was cut short while it is in use; copy it again and start again" for file in _cut_short()] or [
        "a file that is mapped into memory cannot be read: its disk or file server fails"
    ]
    os.write(2, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    os._exit(exit_status.USER_ERROR)


def _cut_short() -> list[str]:
    found = []
    for (device, inode, path), end in _ends.items():
        try:
            now = os.stat(path)
        except OSError:
            continue
        if (now.st_dev, now.st_ino) == (device, inode) and now.st_size < end:
            found.append(path)
    return found
