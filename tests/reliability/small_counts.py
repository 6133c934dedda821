# SPDX-License-Identifier: Apache-2.0
"""Runs a driver in a test, with a small count."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.jobs import run_process


def run_driver(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a driver in its own process, which has imported the engine; return its report."""
    report = folder / "report.json"
    job = run_process(_main, (name, [*arguments, "--json", str(report)]), folder / "log")
    assert report.exists(), job.output
    found: dict[str, Any] = json.loads(report.read_text())
    assert found["failures"] == [], job.output
    assert job.status == 0, job.output
    return found


def _main(name: str, arguments: Sequence[str]) -> None:
    sys.exit(importlib.import_module(f"tests.reliability.{name}").main(arguments))
