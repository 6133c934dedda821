# SPDX-License-Identifier: Apache-2.0
"""A Slurm for the tests, and a chain of two stages on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_launcher.clusters.slurm import commands
from tests.clusters.fake_slurm import FakeSlurm, install
from tests.clusters.slurm.chain import CHAIN
from tests.workplace import Launch, Workplace


@pytest.fixture
def fake(workplace: Workplace, plain_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm whose jobs keep their states; each test starts with a responsive one."""
    monkeypatch.setattr(commands, "_silent_until", float("-inf"))
    monkeypatch.setenv("PATH", f"{workplace.root}/bin:{plain_path}")
    return install(workplace.root / "slurm", workplace.root / "bin")


@pytest.fixture
def chain(workplace: Workplace, launch: Launch) -> Launch:
    """Launch a training and its evaluation."""
    more = [*workplace.arguments, *CHAIN, f"evaluation.language_model_path={workplace.base_model}"]
    return lambda *arguments: launch(*more, *arguments)
