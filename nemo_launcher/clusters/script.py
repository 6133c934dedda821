# SPDX-License-Identifier: Apache-2.0
"""What the job scripts of all clusters share: their exit status, and what no script may hold."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

from nemo_launcher.clusters.job import Job
from nemo_launcher.config.constraints import character_problem
from nemo_launcher.errors import Problem, UserError

_NOT_IN_SCRIPTS = ("config",)
"""Fields of a job that go into its YAML file alone."""


def syntax_error(script: str) -> str:
    """Return bash's complaint about the syntax of a script; nothing when it can read it."""
    answer = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    lines = [line.removeprefix("bash: ") for line in answer.stderr.splitlines()]
    return "; ".join(lines[:2]) if answer.returncode else ""


def refuse_control_characters(value: object, where: str = "job script") -> None:
    """Raise UserError when any text that a script is made of holds a control character.

    The schema has refused it before: this holds for values that come another way, and for keys yet to be written.
    """
    if isinstance(value, (str, Path)):
        what = character_problem(str(value))
        if what is not None:
            raise UserError(Problem(where, what, "no script is written; leave it out"))
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_control_characters(str(key), where)
            refuse_control_characters(item, f"{where}: {key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_control_characters(item, where)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.name == "cluster" and isinstance(item, dict):  # setup is lines of the script
                item = {key: setting for key, setting in item.items() if key != "setup"}
            if field.name not in _NOT_IN_SCRIPTS:
                refuse_control_characters(item, field.name)


def keep_exit_status(job: Job, at_end: str) -> list[str]:
    """Lines by which the script leaves its exit status for `nemo-launcher status`, whoever is there when it ends.

    A signal that the whole group gets must not end the script before the processes that save because of it.
    """
    keep = 'status="$?"; echo "$status" > "$exit_status_file"'
    return [
        f"exit_status_file={shlex.quote(str(job.exit_status_file))}",
        'rm -f "$exit_status_file"',
        f"trap {shlex.quote('; '.join(filter(None, [keep, at_end])))} EXIT",
        "trap : HUP INT TERM USR1",
        "",
    ]
