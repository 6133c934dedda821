"""Where the commands begin: nothing is imported before Ctrl-C is told as what it is."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def launch() -> int:
    """Run main.py; return its exit status."""
    try:
        from nemo_launcher.core.launch import main

        return main()
    except KeyboardInterrupt:
        return _interrupted()


def console() -> int:
    """Run nemo-launcher; return its exit status."""
    try:
        from nemo_launcher.cli import main

        return main()
    except KeyboardInterrupt:
        return _interrupted()


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED
