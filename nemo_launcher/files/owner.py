# SPDX-License-Identifier: Apache-2.0
"""Processes as owners of files, locks and jobs, identified by machine, process id and start time.

A reused process id is never mistaken for the process that had it before, nor a process of another machine or
container for a local one.
"""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

HOST = socket.gethostname()


def identity(pid: int) -> tuple[int, str] | None:
    """Return a process's id and start (boot id and clock ticks since boot); None when it has ended."""
    try:
        # the name in parentheses may contain anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else (pid, f"{_boot()}:{fields[18]}")


def is_alive(process: tuple[int, str]) -> bool:
    """Return whether this exact process still runs."""
    return identity(process[0]) == process


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, identified across machines."""

    host: str
    """The host name, for messages."""
    place: str
    """Hash of the host name, the machine's boot id and the process-id namespace."""
    pid: int
    """The process id in that namespace."""
    birth: int
    """Start of the process, in clock ticks since boot."""

    @property
    def is_here(self) -> bool:
        """Whether the owner belongs to this machine and process-id namespace."""
        return self.place == _place()

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended; always False for one of another machine or namespace."""
        return self.is_here and _birth(self.pid) != self.birth

    def __str__(self) -> str:
        return f"{self.host}-{self.place}-{self.pid}-{self.birth}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Parse the output of `str`; return None for any other text."""
        found = re.fullmatch(r"([A-Za-z0-9_.]{1,20})-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})", text, re.ASCII)
        return None if found is None else cls(found[1], found[2], int(found[3]), int(found[4]))


def this_process() -> Owner:
    """Return the current process, also after a fork."""
    return _owner(os.getpid())


def user_name() -> str:
    """Return the name of the user who runs this process, or the user id if the system has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> Owner:
    host = re.sub(r"[^A-Za-z0-9_.]", "_", HOST)[:20] or "host"
    return Owner(host, _place(), pid, _birth(pid) or 0)


def _birth(pid: int) -> int | None:
    found = identity(pid)
    return None if found is None else int(found[1].rpartition(":")[2])


@functools.cache
def _place() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{HOST}\n{_boot()}\n{namespace}".encode()).hexdigest()[:8]


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
