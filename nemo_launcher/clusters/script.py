# SPDX-License-Identifier: Apache-2.0
"""Parts shared by the job scripts of all clusters: keeping the exit status and refusing control characters."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

from nemo_launcher.clusters.job import Job
from nemo_launcher.config.constraints import character_problem
from nemo_launcher.errors import Problem, UserError

_NOT_IN_SCRIPTS = ("config",)
"""Fields of a job that appear only in its YAML file."""


def syntax_error(script: str) -> str:
    """Return bash's syntax error in a script; empty if there is none."""
    answer = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    lines = [line.removeprefix("bash: ") for line in answer.stderr.splitlines()]
    return "; ".join(lines[:2]) if answer.returncode else ""


def refuse_control_characters(value: object, where: str = "job script") -> None:
    """Raise UserError when any text in a script contains a control character.

    The schema already refuses them; this also covers values from other sources and keys added later.
    """
    if isinstance(value, (str, Path)):
        what = character_problem(str(value))
        if what is not None:
            raise UserError(Problem(where, what, "remove the character; no script was written"))
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
            if field.name == "cluster" and isinstance(item, dict):  # setup consists of script lines
                item = {key: setting for key, setting in item.items() if key != "setup"}
            if field.name not in _NOT_IN_SCRIPTS:
                refuse_control_characters(item, field.name)


def keep_exit_status(job: Job, at_end: str) -> list[str]:
    """Return lines that write the script's exit status to a file for `nemo-launcher status`.

    A signal to the whole process group must not end the script before the processes that save a checkpoint on it.
    """
    keep = 'status="$?"; echo "$status" > "$exit_status_file"'
    return [
        f"exit_status_file={shlex.quote(str(job.exit_status_file))}",
        'rm -f "$exit_status_file"',
        f"trap {shlex.quote('; '.join(filter(None, [keep, at_end])))} EXIT",
        "trap : HUP INT TERM USR1",
        "",
    ]
