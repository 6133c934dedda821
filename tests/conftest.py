"""Fixtures of the engine's tests, and how tests are dealt out to the workers of pytest-xdist."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST = ("tests/integration/", "tests/reliability/")
"""Begun first, so that no worker waits for the other in the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep integration tests of one file in one worker, which makes their costly fixtures once.

    Files that share more than that, such as a Slurm, name an `xdist_group` of their own.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    for item in items:
        if item.get_closest_marker("integration") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random base checkpoint: Llama-shaped, tied head, grouped queries. Treat as read-only."""
    from tests.engine import tiny_gpt_nemo

    return tiny_gpt_nemo(tmp_path_factory.mktemp("tiny_base") / "base.nemo")
