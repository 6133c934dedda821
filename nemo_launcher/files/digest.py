# SPDX-License-Identifier: Apache-2.0
"""Checksums of files."""

from __future__ import annotations

import hashlib
import os

_BLOCK = 1 << 20
"""Bytes read at a time."""


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
