# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the engine's tests, and the order of test files."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

LONGEST = ("tests/integration/", "tests/reliability/")
"""Files that start first, so that no worker is idle at the end."""


def pytest_configure() -> None:
    """Restore default signal handling, which nohup or a background shell may disable; children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the slowest files to the front."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random base checkpoint: Llama-shaped, tied head, grouped queries. Treat as read-only."""
    from tests.engine import tiny_gpt_nemo

    return tiny_gpt_nemo(tmp_path_factory.mktemp("tiny_base") / "base.nemo")
