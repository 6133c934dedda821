# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the engine's tests, and the order of test files."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from pathlib import Path

import pytest

LONGEST = ("tests/integration/", "tests/reliability/")
"""Files that start first, before other tests that start processes, so that no worker is idle at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Restore default signal handling, which nohup or a background shell may disable; set a cache folder of its own.

    Hide GPUs, unless CUDA_VISIBLE_DEVICES names some: the tests compare with results on a CPU. Child processes inherit
    all of these.
    """
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gc.set_threshold(100_000, 20, 50)  # configurations make many objects beside all those of torch
    # measured costs of rows (nemo_launcher.runtime.row_costs) are not the user's
    cache = tempfile.TemporaryDirectory(prefix="nemo-launcher-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = cache.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; `make test` looks for tests with a Slurm in one folder."""
    strays = [item.nodeid for item in items if item.get_closest_marker("slurm")]
    strays = [nodeid for nodeid in strays if not nodeid.startswith("tests/integration/")]
    if strays:
        raise pytest.UsageError(f"marked slurm outside tests/integration: {', '.join(strays)}")
    items.sort(key=lambda item: (not item.nodeid.startswith(LONGEST), not item.get_closest_marker("integration")))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random base checkpoint: Llama-shaped, tied head, grouped queries. Treat as read-only."""
    from tests.engine import tiny_gpt_nemo

    return tiny_gpt_nemo(tmp_path_factory.mktemp("tiny_base") / "base.nemo")
