# SPDX-License-Identifier: Apache-2.0
"""start_ranks.py: the ranks of one pod, their variables and the resulting exit status."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.workplace import REPOSITORY

pytestmark = pytest.mark.integration

PROGRAM: dict[str, Any] = runpy.run_path(str(REPOSITORY / "launcher_scripts" / "start_ranks.py"))
STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('there', flush=True)\n"
    "while True: signal.pause()"
)


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_variables_of_a_rank() -> None:
    found = PROGRAM["rank_environment"](index=2, local_rank=1, nodes=3, devices=4)
    assert found == {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(("code", "status"), [("", 0), ("raise SystemExit(75)", 75)])
def test_the_status_of_the_ranks(code: str, status: int) -> None:
    assert PROGRAM["wait"]([python(code), python("")], grace_s=60.0) == status


def test_a_rank_that_waits_for_one_that_failed_is_ended() -> None:
    """The first failure determines the status, however the other ranks end."""
    waiting = python(STUBBORN)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == b"there\n"
    assert PROGRAM["wait"]([waiting, python("raise SystemExit(3)")], grace_s=0.1) == 3
    assert waiting.returncode == -signal.SIGKILL


def test_a_rank_that_was_killed() -> None:
    killed = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert PROGRAM["wait"]([killed], grace_s=60.0) == 128 + signal.SIGKILL
