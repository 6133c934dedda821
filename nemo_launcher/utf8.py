# SPDX-License-Identifier: Apache-2.0
"""Python in UTF-8 mode whatever the locale: under another encoding paths and texts would be read as something else."""

from __future__ import annotations

import os
import sys


def ensure() -> None:
    """Start this process again in UTF-8 mode where its encoding is another one, as with LC_ALL=C and PYTHONUTF8=0."""
    if sys.getfilesystemencoding().lower() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"  # for its children as well
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
