# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while a command is still importing: nothing is under way, so the process ends at once, without a traceback.

An exception would come out of the middle of an import, where libraries and weak references lose or print it.
"""

from __future__ import annotations

import os
import sys
from types import FrameType, TracebackType


def end_at_once() -> None:
    """From now on Ctrl-C ends the process with status 130; one that is ignored, as in the background, stays so."""
    sys.excepthook = _without_traceback  # until the next import is done
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, for what is under way to clean up."""
    import signal

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = sys.__excepthook__


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)  # exit_status.INTERRUPTED; an import here could be interrupted too


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os.write(2, b"interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)
