# SPDX-License-Identifier: Apache-2.0
"""Handle Ctrl-C and missing dependencies during imports: the process ends at once, without a traceback.

No work has started then.

An exception raised in the middle of an import may be swallowed or printed by a library or a weak reference callback.
"""

from __future__ import annotations

import os
import sys
from types import FrameType, TracebackType


def end_at_once() -> None:
    """Make Ctrl-C end the process with status 130, unless SIGINT is ignored, as in background jobs.

    An unsupported Python version and a missing dependency end it with status 2 and a message that says what to install.
    """
    sys.excepthook = _without_traceback  # an interrupt during the imports below
    from nemo_launcher import requirements

    problem = requirements.python_problem()
    if problem is not None:
        _leave(problem)
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again, so that running code can clean up."""
    import signal

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = sys.__excepthook__


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + number)  # exit_status.INTERRUPTED, not imported as the import could be interrupted as well


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os.write(2, b"interrupted\n")
        return
    from nemo_launcher import requirements

    missing = requirements.missing_module(error) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None:
        _leave(missing)
    sys.__excepthook__(kind, error, trace)


def _leave(message: str) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    os._exit(2)  # exit_status.USER_ERROR, which no exception can set from a hook
