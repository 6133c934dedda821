# SPDX-License-Identifier: Apache-2.0
"""Reference files outside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared"


def shared_path(relative: str) -> Path:
    """Return the path of a reference file, or skip the test if it does not exist.

    The folder is NEMO_LAUNCHER_SHARED, or `shared` beside the repository.
    """
    folder = Path(os.environ.get("NEMO_LAUNCHER_SHARED") or _BESIDE_THE_REPOSITORY)
    path = folder / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared reference files (NEMO_LAUNCHER_SHARED names their folder)")
    return path
