# SPDX-License-Identifier: Apache-2.0
"""Handing jobs over to a scheduler so that nothing is lost, whatever happens in between."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType

from nemo_launcher.clusters.record import JobRecord, read, write


class SubmissionError(RuntimeError):
    """The scheduler refused a job; the message is the scheduler's."""


def leave(records: Iterable[JobRecord]) -> None:
    """Let records say that their jobs were not submitted, and that no launcher is about to do so."""
    for record in records:
        now = read(record.record_file)
        if now is not None and not now.damage and now.job_id is None and now.process is not None:
            with contextlib.suppress(OSError):
                write(dataclasses.replace(now, host=None, process=None))


@contextlib.contextmanager
def exit_status_aside(record: JobRecord) -> Iterator[None]:
    """Take the exit status of an earlier run away, and bring it back when the job is not submitted after all."""
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
    """Let Ctrl-C and the like come through only when the scheduler's answer has been recorded."""
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
