# SPDX-License-Identifier: Apache-2.0
"""Entry points of the commands. Ctrl-C is handled before any slow import starts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from nemo_launcher import interrupts

interrupts.end_at_once()


def launch() -> int:
    """Run main.py; return its exit status."""
    _use_utf8()
    return _run("nemo_launcher.launcher.launch")


def console() -> int:
    """Run nemo-launcher; return its exit status."""
    _use_utf8()
    return _run("nemo_launcher.cli")


def _use_utf8() -> None:
    from nemo_launcher import utf8  # after end_at_once, like every other import

    utf8.ensure()


def _run(module: str) -> int:
    from nemo_launcher import exit_status, requirements

    try:
        main: Callable[[], int] = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        missing = requirements.missing_module(error)
        if missing is None:
            raise
        print(missing, file=sys.stderr)
        return exit_status.USER_ERROR
    try:
        interrupts.raise_again()
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exit_status.INTERRUPTED
