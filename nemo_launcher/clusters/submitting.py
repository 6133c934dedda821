# SPDX-License-Identifier: Apache-2.0
"""Helpers for submitting jobs to a scheduler without losing track of them at an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType

from nemo_launcher.clusters.record import JobRecord, read, write


class SubmissionError(RuntimeError):
    """The scheduler refused a job; the message is usually the scheduler's."""


def mark_not_submitted(records: Iterable[JobRecord]) -> None:
    """Mark records as not submitted and with no launcher about to submit them."""
    for record in records:
        now = read(record.record_file)
        if now is not None and not now.damage and now.job_id is None and now.process is not None:
            with contextlib.suppress(OSError):
                write(dataclasses.replace(now, host=None, process=None))


@contextlib.contextmanager
def exit_status_aside(record: JobRecord) -> Iterator[None]:
    """Move an earlier run's exit status aside; restore it if the submission fails."""
    aside = record.folder / f".{record.exit_status_file.name}.before"
    with contextlib.suppress(FileNotFoundError):
        os.replace(record.exit_status_file, aside)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.replace(aside, record.exit_status_file)
        raise
    aside.unlink(missing_ok=True)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer Ctrl-C and similar signals until the scheduler's answer is recorded."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        received.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, remember) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(received):
            signal.raise_signal(late)
