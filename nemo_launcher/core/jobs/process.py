"""Processes of this machine: one is known by its id and when it began, so that a reused id is never taken for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

HOST = socket.gethostname()
POLL_S = 0.1


def identity(pid: int) -> tuple[int, str] | None:
    """Return a process's id and birth, the boot of the machine and the clock ticks since; None when it has ended."""
    try:
        # the name in parentheses may hold anything
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if state in "ZX" else (pid, f"{boot}:{fields[18]}")


def is_alive(process: tuple[int, str]) -> bool:
    """Whether this very process still runs."""
    return identity(process[0]) == process


def end_group(process: tuple[int, str], grace_s: float) -> str:
    """Ask a process group to end and wait for it, `grace_s` seconds at most, then kill it; return what was done."""
    group = process[0]
    if not is_alive(process):
        return "had ended already"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    limit = time.monotonic() + grace_s
    while time.monotonic() < limit:
        if not _members(group):
            return "ended"
        time.sleep(POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return f"killed, as it had not ended in {grace_s:.0f} s"


def _members(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(member_of) == group and state not in "ZX":
                    found.append(int(entry.name))
    return found
