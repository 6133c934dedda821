"""Where the commands begin: nothing is imported before Ctrl-C is told as what it is."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nemo_launcher import interrupts

interrupts.end_at_once()


def launch() -> int:
    """Run main.py; return its exit status."""
    _use_utf8()
    from nemo_launcher.core.launch import main

    return _run(main)


def console() -> int:
    """Run nemo-launcher; return its exit status."""
    _use_utf8()
    from nemo_launcher.cli import main

    return _run(main)


def _use_utf8() -> None:
    from nemo_launcher import utf8  # behind end_at_once, as every import

    utf8.ensure()


def _run(main: Callable[[], int]) -> int:
    try:
        interrupts.raise_again()
        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return interrupts.EXIT_INTERRUPTED
