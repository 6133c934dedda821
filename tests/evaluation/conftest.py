# SPDX-License-Identifier: Apache-2.0
"""Inputs of evaluation jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_launcher.adapters.archive import save_adapter
from tests.engine import adapted, write_squad
from tests.jobs import job_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter with the configuration of a training job."""
    path = tmp_path_factory.mktemp("adapter") / "adapter.nemo"
    config = job_config(tiny_base, data, path.parent)["model"]
    save_adapter(path, config, adapted(tiny_base, config)[1].state_dict())
    return path
