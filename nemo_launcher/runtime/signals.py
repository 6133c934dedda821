# SPDX-License-Identifier: Apache-2.0
"""Signals to the process of a job, from its first instruction on.

The scripts import this module before anything else. USR1 is Slurm's warning ahead of a time limit or a preemption: it
is remembered, and training acts upon it. TERM, INT and HUP end the process with status 128 + n after its clean-up, or,
once training has called `defer`, are remembered too. Slurm sends TERM twice, some 50 ms apart: a further signal never
disturbs a clean-up or a checkpoint that is being written, except a second Ctrl-C at a terminal. KILL comes anyway.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

from nemo_launcher import exit_status

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HANDLED = (signal.SIGUSR1, *ENDING)

_owner = 0  # the process that watches: those that it forks have handlers of their own to look after
_deferred = False
_received = 0


class Stopped(SystemExit):
    """The process was asked to end; its status is 128 + the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(exit_status.of_signal(number))
        self.number = number


def watch() -> None:
    """Handle the signals of a job. A hangup that the process was started to ignore, as by nohup, stays ignored."""
    global _owner, _deferred, _received
    _owner, _deferred, _received = os.getpid(), False, 0
    _install()


def raise_on_termination() -> None:
    """From now on TERM and HUP raise Stopped, for a command that cleans up; one that is ignored stays so."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a further one must not disturb the clean-up
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def owner() -> int:
    """Return the id of the process that watches, 0 when none does."""
    return _owner


def defer() -> None:
    """From now on remember every signal: the caller looks at `received` where it can end with a checkpoint.

    Handlers that a library has put in place meanwhile are replaced.
    """
    global _deferred
    if _owner != os.getpid():
        watch()
    _deferred = True
    _install()


def _install() -> None:
    for number in HANDLED:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def received() -> int:
    """Return the number of the signal to act upon, 0 when there was none.

    TERM, INT and HUP count more than USR1: a job that was cancelled must not go back into the queue.
    """
    return _received


def _receive(number: int, _: FrameType | None) -> None:
    global _received
    if os.getpid() != _owner:
        _in_child(number)
        return
    repeated = number == signal.SIGINT == _received
    first_to_end = number in ENDING and _received not in ENDING
    if first_to_end or not _received:
        _received = number
    if repeated and _is_terminal():
        _kill_self(number)
    if first_to_end and not _deferred:
        raise Stopped(number)


def _in_child(number: int) -> None:
    """A forked process, such as a data worker: TERM ends it, all else is for its parent to decide."""
    if number == signal.SIGTERM:
        _kill_self(number)


def _kill_self(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _is_terminal() -> bool:
    with contextlib.suppress(AttributeError, ValueError):  # closed, or none at all
        return sys.stdin.isatty()
    return False
