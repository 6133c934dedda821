# SPDX-License-Identifier: Apache-2.0
"""Show the end of a job's logs and follow new output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_launcher.clusters.interactive.output import last_lines

POLL_S = 0.5
ASK_S = 5.0
"""Seconds between questions whether a job still runs, to spare the scheduler."""


def show(logs: Sequence[Path], count: int) -> dict[Path, int]:
    """Print the last `count` lines of each log that is not empty, with headings if there are several.

    Returns the position up to which each log was read, in bytes.
    """
    sizes = {log: log.stat().st_size if log.exists() else 0 for log in logs}
    written = [log for log, size in sizes.items() if size]
    for log in written:
        text = last_lines(log, count, sizes[log])
        print(f"==> {log} <==\n{text}" if len(written) > 1 else text, flush=True)
    return sizes


def follow(logs: Sequence[Path], count: int, is_active: Callable[[], bool]) -> None:
    """Print the last lines, then new output until the job is no longer active."""
    places = show(logs, count)
    asked, active = time.monotonic(), is_active()
    while active:
        time.sleep(POLL_S)
        _show_new(places)
        if time.monotonic() - asked >= ASK_S:
            asked, active = time.monotonic(), is_active()
    _show_new(places)


def _show_new(places: dict[Path, int]) -> None:
    """Print what was appended to each log since its position, and advance the positions."""
    for log, place in places.items():
        if not log.exists() or log.stat().st_size <= place:
            continue
        with log.open("rb") as file:
            file.seek(place)
            data = file.read()
            places[log] = file.tell()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
