# SPDX-License-Identifier: Apache-2.0
"""The launcher's fixtures, see tests/workplace.py."""

import sys

import pytest

from tests.workplace import *  # noqa: F403


@pytest.fixture
def real_data(prepared: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data modules themselves instead of their stand-ins."""
    for name in ("jsonl", "squad"):
        monkeypatch.delitem(sys.modules, f"nemo_launcher.data.{name}")
