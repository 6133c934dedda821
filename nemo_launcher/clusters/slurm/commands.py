# SPDX-License-Identifier: Apache-2.0
"""Run Slurm's commands in parallel, with short timeouts, in an environment that does not alter their output.

Clients wait for minutes for a controller that is down or overloaded. The first command that does not answer therefore
stops all further queries for a while, so that the timeout is paid only once.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

TIMEOUT_S = 8.0
"""Timeout of a query in seconds."""
ORDER_TIMEOUT_S = 60.0
"""Timeout of a submission or cancellation in seconds; a busy controller may be slow."""
SILENCE_S = 30.0
"""Seconds without queries after a command that did not answer."""
KEPT = ("SLURM_CONF", "SLURM_JWT")
# variables with these prefixes silently change what the commands do or print
CHANGING = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")

Answer = subprocess.CompletedProcess[str]

_silent_until = float("-inf")


def ask(*commands: Sequence[str], timeout_s: float | None = None) -> list[Answer | None]:
    """Run commands in parallel; the result is None for each that is missing or does not answer."""
    if time.monotonic() < _silent_until:
        return [None] * len(commands)
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: _run(command, timeout_s or TIMEOUT_S), commands))


def order(command: Sequence[str], *, text: str = "", variables: dict[str, str] | None = None) -> Answer | None:
    """Run a command that changes something, even while queries are stopped; None if it is missing or does not answer.

    text: its standard input; variables: added to its environment. It runs in a new session, so that Ctrl-C cannot
    interrupt a submission halfway.
    """
    return _run(command, ORDER_TIMEOUT_S, text, variables)


def clean_environment() -> dict[str, str]:
    """Return the environment without the variables that set options of Slurm's commands."""
    return {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(CHANGING)}


def dropped_variables() -> list[str]:
    """Return the names of variables that would have changed a submission."""
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
