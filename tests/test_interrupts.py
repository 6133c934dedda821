# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any moment of a command's start ends it without a traceback, with status 130."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[1]
# Counts imports from that of this package on, and sends Ctrl-C at the chosen one. The first two are those of the
# package and of the module that handles Ctrl-C.
SITE = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)
seen, chosen = -1, int(os.environ["INTERRUPT_AT"])

def hook(event, arguments):
    global seen
    if event != "import" or (seen < 0 and arguments[0] != "nemo_launcher"):
        return
    seen += 1
    if seen == chosen:
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
"""
COMMANDS = {
    "main": ["main.py", "--help"],
    "launcher_scripts/main": ["launcher_scripts/main.py", "--help"],
    "console": ["-c", "from nemo_launcher.entry import console\nimport sys\nsys.exit(console())", "status", "/"],
    "train": ["launcher_scripts/train.py", "/no/such.yaml"],
    "convert": ["launcher_scripts/convert_hf2nemo.py", "/no/such.yaml"],
    "fetch": ["launcher_scripts/fetch_base_model.py"],
}
CHOSEN = random.Random(7)
# The first two are the imports of the package and of the module that looks after Ctrl-C.
MOMENTS = [3, 4, 5, *CHOSEN.sample(range(6, 120), 5)]


def run(command: list[str], folder: Path, moment: int) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": f"{folder}:{REPOSITORY}", "INTERRUPT_AT": str(moment)}
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_a_command_starts(name: str, tmp_path: Path) -> None:
    moments = MOMENTS if not name.startswith(("fetch", "convert")) else MOMENTS[:4]
    if name == "main":  # main is protected from its first line on
        moments = [0, 1, 2, *moments]
    for moment in moments:
        done = run(COMMANDS[name], tmp_path, moment)
        assert "Traceback" not in done.stderr, (moment, done.stderr)
        assert "Exception ignored" not in done.stderr, (moment, done.stderr)
        assert done.returncode in (130, -signal.SIGINT), (moment, done.stderr)


def test_without_ctrl_c_it_is_the_command_s_own_status(tmp_path: Path) -> None:
    assert run(COMMANDS["main"], tmp_path, 10**6).returncode == 0
