# SPDX-License-Identifier: Apache-2.0
"""Files of tokenizers, for their tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from tests.engine import save_tokenizer


def archive_with(path: Path, section: dict[str, Any], members: dict[str, bytes]) -> Archive:
    write_archive(path, {"tokenizer": section}, dict(members))
    return Archive(path)


def folder_members(folder: Path, inside: str) -> dict[str, bytes]:
    save_tokenizer(folder)
    return {f"{inside}/{file.name}": file.read_bytes() for file in folder.iterdir()}
