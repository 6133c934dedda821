# SPDX-License-Identifier: Apache-2.0
"""Memory-mapped files, with a clear error when one is truncated while it is in use.

Reading beyond the new end of a mapped file kills a process with SIGBUS, silently: no exception is raised, and
Python's signal handlers never run because the failed instruction is repeated. The C library calls the handler here
in the thread that failed; it names the file and ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nemo_launcher import exit_status
from nemo_launcher.errors import Problem, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_handler: object = None  # kept alive, as the C library only has its address
_ending = threading.Lock()
_ends: dict[tuple[int, int, str], int] = {}
"""The end of the mapped part of each file, in bytes, by device, inode and path."""
_mappings: dict[int, int] = {}
"""The end address of each mapping of this process, by its start address."""


def map_bytes(path: Path, offset: int, size: int) -> NDArray[np.uint8]:
    """Return `size` bytes of a file from `offset`, mapped copy-on-write: [size].

    Raises UserError when the file is too short and OSError when it cannot be read.
    """
    import numpy as np  # not needed by the launcher, which only reads headers

    if size == 0:
        return np.empty(0, dtype=np.uint8)
    name_when_cut_short(path, offset + size)
    mapped = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(size,))
    start = mapped.ctypes.data
    _mappings[start] = start + size
    weakref.finalize(mapped.base, _mappings.pop, start, None)
    return mapped


def release_pages(address: int, size: int) -> None:
    """Release the memory of a part of a mapped file; the next access reads it from the file again.

    Does nothing for memory that no file is mapped to (map_bytes). Values that were changed in memory would be lost.
    """
    inside = any(start <= address and address + size <= end for start, end in list(_mappings.items()))
    if sys.platform != "linux" or not inside:
        return
    page = mmap.PAGESIZE
    first, last = -(-address // page) * page, (address + size) // page * page
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def name_when_cut_short(path: Path, end: int) -> None:
    """Name the file when this process ends because a file that is mapped up to `end` was truncated.

    Raises UserError when the file is already shorter.
    """
    global _handler
    found = path.stat()
    if found.st_size < end:
        what = f"was truncated while it was read: it has {found.st_size:,} of {end:,} bytes"
        raise UserError(Problem(str(path), what, "copy it again"))
    key = found.st_dev, found.st_ino, os.path.abspath(path)
    _ends[key] = max(end, _ends.get(key, 0))
    if _handler is None and sys.platform == "linux":
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
        ctypes.CDLL(None).signal(signal.SIGBUS, _handler)


def _end(number: int) -> NoReturn:
    _ending.acquire()  # never released: another failing thread waits here until the process ends
    lines = [f"{file}: was truncated while in use; copy it again and restart" for file in _truncated()] or [
        "a memory-mapped file cannot be read: its disk or file server failed"
    ]
    os.write(2, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    os._exit(exit_status.USER_ERROR)


def _truncated() -> list[str]:
    found = []
    for (device, inode, path), end in _ends.items():
        try:
            now = os.stat(path)
        except OSError:
            continue
        if (now.st_dev, now.st_ino) == (device, inode) and now.st_size < end:
            found.append(path)
    return found
