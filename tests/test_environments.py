# SPDX-License-Identifier: Apache-2.0
"""`make test-versions`: its exit status and last lines. Its environments are this one, so that nothing is fetched."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.environments import ROOT

pytestmark = pytest.mark.integration
TESTS = """
import pytest

pytestmark = pytest.mark.unit

def test_passes():
    pass

@pytest.mark.skip
def test_is_skipped():
    pass
"""
FAILS = "def test_fails():\n    assert False\n"


def run(folder: Path, tests: str, environments: dict[str, bool]) -> tuple[int, list[str]]:
    """Run tests in environments, {name: whether pip can install}; return the exit status and a last line for each."""
    file = folder / "test_some.py"
    file.write_text(tests)
    command = [sys.executable, "-m", "tests.environments", "--workers", "1", "--folder", folder, file]
    for name, can_be_made in environments.items():
        python = folder / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        of_pip = f"exit {0 if can_be_made else 1}"
        python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && {of_pip}\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        command += ["--environment", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()[-len(environments) :]


def test_an_environment_whose_tests_pass(tmp_path: Path) -> None:
    status, (line,) = run(tmp_path, TESTS, {"pinned": True})
    assert status == 0
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    assert line.startswith(f"pinned: Python {platform.python_version()}, {versions}: 1 passed, 0 failed, 1 skipped, ")


def test_an_environment_with_a_failed_test(tmp_path: Path) -> None:
    status, (line,) = run(tmp_path, TESTS + FAILS, {"older": True})
    assert status == 1
    assert line.startswith("older: ")
    assert ": 1 passed, 1 failed, 1 skipped, " in line


def test_an_environment_that_cannot_be_made(tmp_path: Path) -> None:
    """The others are tested all the same, and a line for each is at the end."""
    status, (first, second) = run(tmp_path, TESTS, {"lowest": False, "pinned": True})
    assert status == 1
    assert first.startswith("lowest: cannot be made: ")
    assert ": 1 passed, 0 failed, 1 skipped, " in second
