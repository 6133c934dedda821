# SPDX-License-Identifier: Apache-2.0
"""Text of data files for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Return text with characters that would control a terminal as escapes, such as \\\\x1b; line feeds stay."""
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text)
