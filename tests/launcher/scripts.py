# SPDX-License-Identifier: Apache-2.0
"""Scripts of jobs, line by line."""

from __future__ import annotations

from pathlib import Path


def lines_of(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}_submission.sh").read_text().splitlines()
