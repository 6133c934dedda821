# SPDX-License-Identifier: Apache-2.0
"""Identify and end the processes of a local job as a group."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from nemo_launcher.files.owner import HOST, identity, is_alive

__all__ = ["HOST", "end_group", "identity", "is_alive", "runs_script"]

POLL_S = 0.1


def runs_script(pid: int, script: Path) -> bool:
    """Return whether a process is this user's, leads its group and runs the job script; only then may it be ended."""
    try:
        of_user = os.stat(f"/proc/{pid}").st_uid == os.getuid()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        leads = os.getpgid(pid) == pid and pid != os.getpgrp()
    except OSError:
        return False
    wanted = os.path.realpath(script)
    runs = any(os.path.realpath(os.fsdecode(word)) == wanted for word in command if word.endswith(b".sh"))
    return of_user and leads and runs


def end_group(process: tuple[int, str], grace_s: float) -> str:
    """End a process group with SIGTERM, or with SIGKILL after `grace_s` seconds; return what was done."""
    group = process[0]
    if not is_alive(process):
        return "had already ended"
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
    """Return the live processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(member_of) == group and state not in "ZX":
                    found.append(int(entry.name))
    return found
