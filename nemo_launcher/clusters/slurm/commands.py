# SPDX-License-Identifier: Apache-2.0
"""Slurm's commands: run at once, with short timeouts, in an environment that changes none of their answers.

A controller that is down or overloaded keeps its clients waiting for minutes. The first command that does not answer
ends all further questions for a while, so that nobody waits twice for the same silence.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

TIMEOUT_S = 8.0
"""Of a question."""
ORDER_TIMEOUT_S = 60.0
"""Of a submission or cancellation, which a busy controller may take its time for."""
SILENCE_S = 30.0
"""How long nothing is asked after a command that did not answer."""
KEPT = ("SLURM_CONF", "SLURM_JWT")
# these change what the commands do or print, silently
CHANGING = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")

Answer = subprocess.CompletedProcess[str]

_silent_until = float("-inf")


def ask(*commands: Sequence[str], timeout_s: float | None = None) -> list[Answer | None]:
    """Run commands at the same time; None for each that is not there or does not answer."""
    if time.monotonic() < _silent_until:
        return [None] * len(commands)
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: _run(command, timeout_s or TIMEOUT_S), commands))


def order(command: Sequence[str], *, text: str = "", variables: dict[str, str] | None = None) -> Answer | None:
    """Run a command that changes something, also while Slurm is silent; None when it is not there or does not answer.

    text: its standard input; variables: of its environment. It has a session of its own: Ctrl-C must not leave it
    unknown whether a job was submitted.
    """
    return _run(command, ORDER_TIMEOUT_S, text, variables)


def clean_environment() -> dict[str, str]:
    """The environment without the variables by which Slurm's commands take options: the script's are the only ones."""
    return {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(CHANGING)}


def dropped_variables() -> list[str]:
    """The variables that would have changed a submission."""
    return sorted(name for name in os.environ if name.startswith("SBATCH_"))


def _run(
    command: Sequence[str], timeout_s: float, text: str = "", variables: dict[str, str] | None = None
) -> Answer | None:
    global _silent_until
    environment = clean_environment() | (variables or {})
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=environment,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        _silent_until = time.monotonic() + SILENCE_S
        return None
    except OSError:
        return None
