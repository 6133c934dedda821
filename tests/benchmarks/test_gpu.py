# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py at tiny sizes on the CPU: its sections measure, and failures are rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_models import attempt
from tests.jobs import REPOSITORY

SECTIONS = ("machine", "operators", "parity", "attention", "generation", "jobs")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.integration
@pytest.mark.extended
def test_each_section_has_rows_without_an_error(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--device", "cpu", "--small", "--only", ",".join(SECTIONS))
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads((tmp_path / "gpu.json").read_text())
    assert tuple(found) == SECTIONS
    assert [row for rows in found.values() for row in rows if "error" in row] == []
    assert all(row["agrees"] for row in found["parity"])
    assert {row["dtype"] for row in found["parity"]} == {"float32", "bfloat16"}
    assert found["jobs"][-1]["resumed"]
    assert found["jobs"][-1]["all_steps"]


@pytest.mark.unit
def test_a_failure_is_a_row() -> None:
    def fails() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert list(attempt(fails, model="large")) == [
        {"model": "large", "error": "OutOfMemoryError: CUDA out of memory"},
    ]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--only", "machine,speed"], "the sections are machine, parity"), (["--device", "tpu"], "invalid choice")],
)
def test_a_wrong_argument_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run("--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert told in done.stderr
