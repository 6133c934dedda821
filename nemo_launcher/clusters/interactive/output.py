# SPDX-License-Identifier: Apache-2.0
"""Show a job's output live and write it to a log file.

A separate process reads the job's pipe, so that the job and its log continue when the launcher is killed, the terminal
is closed or the log's disk is full. It uses only the standard library and starts in about 20 ms.
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
"""Seconds between checks whether the launcher is still alive."""
LEFT_S = 10.0
"""Seconds that the writer may take to empty the pipe after the job's end."""


class LineLog:
    """A log file of complete lines; of a line redrawn with carriage returns only the last state is kept.

    When the disk is full, `warn` is called once, and the log notes the missing lines as soon as there is room again.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self._warn = warn
        self._file = path.open("ab", buffering=0)
        self._line = b""
        self._redrawn = b""
        self._lost = 0
        self._torn = False

    def write(self, data: bytes) -> None:
        """Add output; complete lines are written to the disk at once."""
        *complete, rest = data.replace(b"\r\n", b"\n").split(b"\n")
        for part in complete:
            self._draw(part)
            self._end_line()
        self._draw(rest)

    def note(self, text: str) -> None:
        """Write a line that is not part of the job's output."""
        self._append(f"{text}\n".encode())

    def close(self) -> None:
        """Write an unfinished last line and close the file."""
        if self._line or self._redrawn:
            self._end_line()
        self._file.close()

    def _draw(self, part: bytes) -> None:
        for i, piece in enumerate(part.split(b"\r")):
            if i > 0:  # back at the start of the line: its old text stays visible until it is overwritten
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
                self._warn(f"{self.path}: the log is incomplete, {error.strerror}; the job goes on")
            self._lost += 1


class Writer:
    """The process that copies a job's output to standard output and to a log file."""

    def __init__(self, log_file: Path) -> None:
        command = [sys.executable, "-I", "-S", __file__, str(log_file), str(os.getpid())]
        # a new session: signals that end the launcher or the job must not end the writer
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pipe(self) -> int:
        """The descriptor that the job writes to."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def hand_over(self) -> None:
        """Close the launcher's end of the pipe once the job has it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait until everything is written."""
        try:
            self._process.wait(timeout=LEFT_S)
        except subprocess.TimeoutExpired:  # the terminal's reader has stopped reading
            self._process.kill()
            self._process.wait()


def copy(pipe: BinaryIO, log: LineLog, launcher: int) -> None:
    """Copy a pipe to standard output unchanged, and to a log, until every writer has closed it."""
    show = followed = True
    while True:
        ready = select.select([pipe], [], [], LOOK_S)[0]
        if followed and os.getppid() != launcher:
            followed = show = False
            for descriptor in (1, 2):  # so that readers of the launcher's output see its end
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
            except OSError:  # the terminal was closed
                show = False
    log.close()


def last_lines(path: Path, count: int, end: int | None = None) -> str:
    """Return the last `count` lines of a log file, or of its first `end` bytes; on failure the error in brackets."""
    try:
        with path.open("rb") as log:
            return _last_lines(log, count, os.fstat(log.fileno()).st_size if end is None else end)
    except OSError as error:  # removed in the meantime, or never written because the disk is full
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
