# SPDX-License-Identifier: Apache-2.0
"""Processes as owners of files, locks and jobs: one is known by its machine, its id and when it began.

A reused process id is never taken for the process that had it before, nor a process of another machine or container
for one of this.
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
    """Return a process's id and birth, the boot of the machine and the clock ticks since; None when it has ended."""
    try:
        # the name in parentheses may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else (pid, f"{_boot()}:{fields[18]}")


def is_alive(process: tuple[int, str]) -> bool:
    """Whether this very process still runs."""
    return identity(process[0]) == process


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, identified across machines."""

    host: str
    """The host name, for messages."""
    place: str
    """Hash of the machine since its last start and of the process-id namespace."""
    pid: int
    """The process id in that namespace."""
    birth: int
    """Start of the process, in clock ticks since the machine's start."""

    @property
    def is_here(self) -> bool:
        """Whether this process can see if it lives."""
        return self.place == _place()

    @property
    def is_dead(self) -> bool:
        """Whether it is certain that the process has ended; False for one of another place."""
        return self.is_here and _birth(self.pid) != self.birth

    def __str__(self) -> str:
        return f"{self.host}-{self.place}-{self.pid}-{self.birth}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Read what `str` wrote; None when it is something else."""
        found = re.fullmatch(r"([A-Za-z0-9_.]{1,20})-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})", text, re.ASCII)
        return None if found is None else cls(found[1], found[2], int(found[3]), int(found[4]))


def this_process() -> Owner:
    """Return the process that runs this, also after a fork."""
    return _owner(os.getpid())


def user_name() -> str:
    """Return who runs this process; the number where the system knows no name."""
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
