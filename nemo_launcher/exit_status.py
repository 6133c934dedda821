# SPDX-License-Identifier: Apache-2.0
"""The exit statuses of commands and jobs (docs/reference.md)."""

from __future__ import annotations

OK = 0
FAILED = 1
"""Something outside the command's control: a full or unwritable disk, a lost rank, an unresponsive cluster."""
USER_ERROR = 2
"""A mistake in the command line or configuration, or an unusable file; the message says what to change."""
STOPPED = 75
"""A training saved a checkpoint after SIGUSR1 or at its time limit; the same job resumes from it (EX_TEMPFAIL)."""
INTERRUPTED = 130
"""Ctrl-C."""
READER_GONE = 141
"""The reader of the launcher's output closed the pipe early, as `| head` does."""


def of_signal(number: int) -> int:
    """Return the exit status of a process that cleaned up and ended after a signal: 128 + n, as in a shell."""
    return 128 + number
