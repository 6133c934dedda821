# SPDX-License-Identifier: Apache-2.0
"""A real training on this machine, cancelled and run again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine import save_llama
from tests.integration.launching import REPOSITORY, chain, write_squad_source

pytestmark = pytest.mark.integration
LIMIT_S = 240


def console(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start a verb of nemo-launcher."""
    command = [sys.executable, "-m", "nemo_launcher.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def output_of(*arguments: str | Path) -> str:
    return console(*arguments).communicate(timeout=LIMIT_S)[0]


def training_of(folder: Path) -> dict[str, Any]:
    jobs = json.loads(output_of("status", folder / "results", "--json"))["jobs"]
    return next((job for job in jobs if job["stage"] == "adapter_learning"), {"step": None})


def test_a_cancelled_training_goes_on_where_it_was(tmp_path: Path) -> None:
    save_llama(tmp_path / "hf")
    write_squad_source(tmp_path / "data")
    (tmp_path / "results").mkdir()
    long = ("adapter_learning.trainer.max_epochs=500",)
    with ThreadPoolExecutor() as pool:
        launched = pool.submit(chain, tmp_path, "llama", "hf", "adapter", *long)
        limit = time.monotonic() + LIMIT_S
        while not training_of(tmp_path)["step"]:
            assert time.monotonic() < limit
            assert not launched.done(), launched.result().stderr
        assert training_of(tmp_path)["state"] == "running"
        cancelled = output_of("cancel", "adapter_learning", "--results-dir", tmp_path / "results")
        assert cancelled.endswith(": ended\n")
        assert launched.result().returncode == 143
    stopped = training_of(tmp_path)
    assert stopped["state"] == "cancelled"
    again = console("rerun", stopped["folder"])
    assert again.stdout is not None
    resumed = next(match for line in again.stdout if (match := re.match(r"resuming at step (\d+)", line)))
    assert int(resumed[1]) == stopped["step"]
    assert output_of("cancel", stopped["folder"]).endswith(": ended\n")
    again.communicate(timeout=LIMIT_S)
    assert again.returncode == 143
