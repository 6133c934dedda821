# SPDX-License-Identifier: Apache-2.0
"""Enforce Python's UTF-8 mode in any locale; another encoding would misread paths and texts."""

from __future__ import annotations

import os
import sys


def ensure() -> None:
    """Restart this process in UTF-8 mode when its encoding is a different one, as with LC_ALL=C and PYTHONUTF8=0."""
    if sys.getfilesystemencoding().lower() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for child processes as well
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
