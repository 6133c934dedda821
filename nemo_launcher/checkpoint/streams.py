# SPDX-License-Identifier: Apache-2.0
"""Streams over parts of files and over unpacked files, for the readers of archives."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path
from typing import IO, Any

from nemo_launcher.errors import Problem, UserError

MAX_RATIO = 50
"""The maximum ratio of unpacked to compressed size; weights hardly compress to half their size."""
_FREE_BYTES = 64 << 20  # of unpacked content, allowed at any ratio


class Part(io.RawIOBase):
    """A range of `size` bytes at `offset` in a file, as a file; closes the underlying file."""

    def __init__(self, stream: IO[bytes], offset: int, size: int) -> None:
        self._stream, self._offset, self._size, self._position = stream, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + position
        if self._position < 0:
            raise ValueError("a position before the beginning")
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        self._stream.seek(self._offset + self._position)
        content = self._stream.read(count)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


class Unpacking(io.RawIOBase):
    """The content of a gzip file, read once in order. Raises UserError beyond `limit`."""

    def __init__(self, path: Path) -> None:
        self._path, self._total = path, 0
        self.limit = max(_FREE_BYTES, MAX_RATIO * path.stat().st_size)
        self._stream = gzip.open(path)  # noqa: SIM115 (close does)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._total += len(content)
        if self._total > self.limit:
            what = f"unpacks to more than {MAX_RATIO} times its size, unlike any weights"
            raise UserError(Problem(str(self._path), what, "copy or convert it again"))
        return content

    def read_to_end(self) -> int:
        """Read the rest of the file, including its checksum; return the total number of bytes."""
        while self.read(1 << 20):
            pass
        return self._total

    def close(self) -> None:
        self._stream.close()
        super().close()


def unpacking(path: Path) -> contextlib.closing[Unpacking]:
    """Open a gzip file with a size limit; a context manager."""
    return contextlib.closing(Unpacking(path))


def is_compressed(path: Path) -> bool:
    """Return whether a file is a gzip file, by its first bytes."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"
