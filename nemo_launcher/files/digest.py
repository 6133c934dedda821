# SPDX-License-Identifier: Apache-2.0
"""Checksums of files."""

from __future__ import annotations

import hashlib
import os

_BLOCK = 1 << 20
"""Bytes read at a time."""


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits. Raises OSError when it cannot be read.

    That of a folder, such as one saved by `datasets`, covers the names and the content of the files in it.
    """
    digest = hashlib.sha256()
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            inner = os.path.join(path, name)
            if os.path.isfile(inner):
                digest.update(f"{name}\0{sha256_of(inner)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
