"""Shows a job's output live and keeps it in a log file."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO


class LineLog:
    """A log file of whole lines: of a line that was redrawn with carriage returns only the last state stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        self._line = b""
        self._redrawn = b""

    def write(self, data: bytes) -> None:
        """Take in the next bytes of output; complete lines reach the disk at once."""
        *complete, rest = data.replace(b"\r\n", b"\n").split(b"\n")
        for part in complete:
            self._draw(part)
            self._end_line()
        self._draw(rest)

    def close(self) -> None:
        """Write what is left of an unfinished line."""
        if self._line or self._redrawn:
            self._end_line()
        self._file.close()

    def _draw(self, part: bytes) -> None:
        for i, piece in enumerate(part.split(b"\r")):
            if i > 0:  # back at the start: what stood there stays visible until something is written over it
                self._redrawn, self._line = self._line or self._redrawn, b""
            self._line += piece

    def _end_line(self) -> None:
        self._file.write((self._line or self._redrawn) + b"\n")
        self._file.flush()
        self._line = self._redrawn = b""


class Follower(threading.Thread):
    """Copies a pipe to the terminal, byte for byte, and to a log, until every writer has closed it."""

    def __init__(self, pipe: BinaryIO, log: LineLog) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._log = log

    def run(self) -> None:
        """Copy until the end; a closed terminal does not lose the log."""
        show = True
        while data := os.read(self._pipe.fileno(), 65536):
            self._log.write(data)
            try:
                if show:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
            except OSError:
                show = False
        self._log.close()


def last_lines(path: Path, count: int, end: int | None = None) -> str:
    """Return the last `count` lines of a log file, or of its first `end` bytes."""
    end = path.stat().st_size if end is None else end
    size = 64 * 1024
    with path.open("rb") as log:
        while True:
            start = max(0, end - size)
            log.seek(start)
            data = log.read(end - start)
            if start == 0 or data.count(b"\n") > count:
                return "\n".join(data.decode("utf-8", errors="replace").splitlines()[-count:])
            size *= 2
