"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random base checkpoint: Llama-shaped, tied head, grouped queries. Treat as read-only."""
    from tests.engine import tiny_gpt_nemo

    return tiny_gpt_nemo(tmp_path_factory.mktemp("tiny_base") / "base.nemo")
