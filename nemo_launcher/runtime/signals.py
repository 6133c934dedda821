# SPDX-License-Identifier: Apache-2.0
"""Signal handling of a job process, from its first instruction on.

The scripts import this module before anything else. USR1 is Slurm's warning before a time limit or a preemption; it is
only recorded, and training acts on it. TERM, INT and HUP end the process with status 128 + n after its clean-up; once
training has called `defer`, they are only recorded too. Slurm sends TERM twice, about 50 ms apart, so a further signal
never interrupts a clean-up or a checkpoint being written, except a second Ctrl-C at a terminal. KILL cannot be handled.
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

_owner = 0  # the process that handles signals; forked children inherit the handlers but not this role
_deferred = False
_received = 0


class Stopped(SystemExit):
    """The process received a signal to end; its status is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(exit_status.of_signal(number))
        self.number = number


def watch() -> None:
    """Install the handlers of a job. A SIGHUP that is ignored at the start, as under nohup, stays ignored."""
    global _owner, _deferred, _received
    _owner, _deferred, _received = os.getpid(), False, 0
    _install()


def raise_on_termination() -> None:
    """Make TERM and HUP raise Stopped, for commands that clean up; a signal that is ignored stays ignored."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # another one must not interrupt the clean-up
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def owner() -> int:
    """Return the id of the process that handles signals, or 0."""
    return _owner


def defer() -> None:
    """Only record signals from now on: the caller checks `received` where it can save a checkpoint and end.

    Handlers that a library has installed meanwhile are replaced.
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
    """Return the number of the signal to handle, or 0.

    TERM, INT and HUP take precedence over USR1: a cancelled job must not be requeued.
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
    """Handle a signal in a forked process, such as a data worker: TERM ends it, the parent handles the others."""
    if number == signal.SIGTERM:
        _kill_self(number)


def heed_parent_alone() -> None:
    """In a data worker, let SIGTERM end this process only if its parent has sent it.

    `timeout`, Slurm and a terminal signal a whole process group: the parent then saves a checkpoint, for which it needs
    its workers, and ends them itself. Call it before the worker starts threads.
    """
    import threading

    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # kept for sigwaitinfo, in all threads

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="waiting for SIGTERM", daemon=True).start()


def _kill_self(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _is_terminal() -> bool:
    with contextlib.suppress(AttributeError, ValueError):  # stdin is closed or None
        return sys.stdin.isatty()
    return False
