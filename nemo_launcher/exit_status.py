# SPDX-License-Identifier: Apache-2.0
"""The exit statuses of commands and jobs (docs/reference.md)."""

from __future__ import annotations

OK = 0
FAILED = 1
"""Something outside the command's control: a full or unwritable disk, a lost rank, a cluster that does not answer."""
USER_ERROR = 2
"""A mistake in the command line or configuration, or a file that cannot be used; the message says what to change."""
STOPPED = 75
"""A training saved a checkpoint after SIGUSR1 or at its time limit; the same job goes on from it (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Ctrl-C."""
READER_GONE = 141
"""The launcher's output was closed before its end, as by `| head`."""


def of_signal(number: int) -> int:
    """Return the status of a process that ended on a signal after its clean-up, as a shell gives it."""
    return 128 + number
