# SPDX-License-Identifier: Apache-2.0
"""Download of the published SQuAD v1.1 files, verified by their SHA-256."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.digest import sha256_of

SOURCE_URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
OFFICIAL_SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",  # 30,288,272 bytes
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",  # 4,854,279 bytes
}
TIMEOUT_S = 60.0
"""The time in seconds without any data after which a download is aborted."""

_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 64 << 20


def download_sources(folder: Path, report: Callable[[str], None] = print) -> tuple[Path, Path]:
    """Download the published files into `folder` and return the paths of train and dev.

    Files from an earlier download are kept. Raises UserError if a file cannot be downloaded or is not the published
    one; the folder then holds no part of it.
    """
    for name in OFFICIAL_SHA256:
        if not is_official(folder / name):
            _download(name, folder, report)
    train, dev = (folder / name for name in OFFICIAL_SHA256)
    return train, dev


def is_official(path: Path) -> bool:
    """Return whether `path` is the published file of that name, by its SHA-256."""
    return path.is_file() and sha256_of(path) == OFFICIAL_SHA256.get(path.name)


def manual_advice(folder: Path) -> str:
    """Return instructions for a manual download."""
    names = " and ".join(OFFICIAL_SHA256)
    return f"download {names} from {SOURCE_URL}/ on another machine and put both into {folder}"


def _download(name: str, folder: Path, report: Callable[[str], None]) -> None:
    url = f"{SOURCE_URL}/{name}"
    report(f"Downloading {url}")
    digest = hashlib.sha256()
    size_bytes = 0
    with atomic_path(folder / name) as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(url, folder):
                digest.update(chunk)
                size_bytes += len(chunk)
                if size_bytes > _MAX_BYTES:  # the wrong file, perhaps an endless one
                    break
                file.write(chunk)
        if digest.hexdigest() != OFFICIAL_SHA256[name]:
            what = f"returned something other than the published file ({size_bytes:,} bytes, wrong SHA-256)"
            raise UserError(Problem(url, what, f"check whether a proxy answers instead, or {manual_advice(folder)}"))


def _chunks(url: str, folder: Path) -> Iterator[bytes]:
    """Yield the content of `url`. Raises UserError for errors of the network, but not of the disk."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            while True:
                chunk = response.read(_CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(Problem(url, f"cannot be downloaded: {reason}", manual_advice(folder))) from error
