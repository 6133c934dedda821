# SPDX-License-Identifier: Apache-2.0
"""Shows a job's output live and keeps it in a log file.

A process of its own reads the job's pipe: the job goes on, and its log with it, when the launcher is killed, when the
terminal is closed and when the disk of the log is full. It uses the standard library alone, and starts in some 20 ms.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

LOOK_S = 1.0
"""How often it is looked whether the launcher is still there."""
LEFT_S = 10.0
"""How long the writer may take for what is left in the pipe after the job's end."""


class LineLog:
    """A log file of whole lines: of a line that was redrawn with carriage returns only the last state stays.

    A disk that takes no more is told once, through `tell`, and again in the log when there is room: the log is cut.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._tell = tell
        self._file = path.open("ab", buffering=0)
        self._line = b""
        self._redrawn = b""
        self._lost = 0
        self._torn = False

    def write(self, data: bytes) -> None:
        """Take in the next bytes of output; complete lines reach the disk at once."""
        *complete, rest = data.replace(b"\r\n", b"\n").split(b"\n")
        for part in complete:
            self._draw(part)
            self._end_line()
        self._draw(rest)

    def note(self, text: str) -> None:
        """Write a line that is not the job's."""
        self._append(f"{text}\n".encode())

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
        self._append((self._line or self._redrawn) + b"\n")
        self._line = self._redrawn = b""

    def _append(self, line: bytes) -> None:
        if self._lost:
            note = f"[launcher: {self._lost} lines are missing here: the log could not be written]\n".encode()
            line = b"\n" * self._torn + note + line
        try:
            written = self._file.write(line)
            if written < len(line):
                self._torn = True
                raise OSError(0, "disk full")
            self._lost, self._torn = 0, False
        except OSError as error:
            if not self._lost:
                self._tell(f"{self.path}: the log is cut, {error.strerror}; the job goes on")
            self._lost += 1


class Writer:
    """The process that copies a job's output to standard output and to a log file."""

    def __init__(self, log_file: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(log_file), str(os.getpid())]
        # a session of its own: what ends the launcher or the job must not end it
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pipe(self) -> int:
        """The descriptor that the job writes to."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def hand_over(self) -> None:
        """Leave the pipe to the job alone, which has it now."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait until all is written."""
        try:
            self._process.wait(timeout=LEFT_S)
        except subprocess.TimeoutExpired:  # a reader of the terminal that reads no more
            self._process.kill()
            self._process.wait()


def copy(pipe: BinaryIO, log: LineLog, launcher: int) -> None:
    """Copy a pipe to standard output, byte for byte, and to a log, until every writer has closed it."""
    show = followed = True
    while True:
        ready = select.select([pipe], [], [], LOOK_S)[0]
        if followed and os.getppid() != launcher:
            followed = show = False
            for descriptor in (1, 2):  # whoever reads the launcher's output waits no longer
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            log.note(f"[launcher: {time.strftime('%F %T')} the launcher was killed; the job goes on]")
        if not ready:
            continue
        data = os.read(pipe.fileno(), 65536)
        if not data:
            break
        log.write(data)
        while show and data:
            try:
                data = data[os.write(1, data) :]
            except OSError:  # a terminal that is closed
                show = False
    log.close()


def last_lines(path: Path, count: int, end: int | None = None) -> str:
    """Return the last `count` lines of a log file, or of its first `end` bytes; a line in brackets if there is none."""
    try:
        with path.open("rb") as log:
            return _last_lines(log, count, os.fstat(log.fileno()).st_size if end is None else end)
    except OSError as error:  # removed meanwhile, or never written on a full disk
        return f"[{path}: {error.strerror}]"


def _last_lines(log: BinaryIO, count: int, end: int) -> str:
    size = 64 * 1024
    while True:
        start = max(0, end - size)
        log.seek(start)
        data = log.read(end - start)
        if start == 0 or data.count(b"\n") > count:
            return "\n".join(data.decode("utf-8", errors="replace").splitlines()[-count:])
        size *= 2


if __name__ == "__main__":
    copy(sys.stdin.buffer, LineLog(Path(sys.argv[1]), lambda text: print(text, file=sys.stderr)), int(sys.argv[2]))
