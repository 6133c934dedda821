# SPDX-License-Identifier: Apache-2.0
"""The job's name and folder: can it be written, and is there room for what the job will leave?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nemo_launcher.errors import Problem
from nemo_launcher.launcher.estimate import bytes_left
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage

MAX_JOB_NAME_BYTES = 200
"""Which leaves 55 of a file name's 255 for log-<job>_<id>.out and temporary names."""


def check_name(stage: Stage) -> list[Problem]:
    """The job's name, which begins the names of its files."""
    name = stage.job_name
    if not name.strip() or "/" in name or name in (".", "..") or name.startswith("-"):
        return [Problem(stage.key("run.name"), f"{name!r} cannot be a file name", "use letters, digits, _ and -")]
    if len(os.fsencode(name)) > MAX_JOB_NAME_BYTES:
        what = f"has {len(os.fsencode(name))} bytes; file names of the job take {MAX_JOB_NAME_BYTES}"
        return [Problem(stage.key("run.name"), what, f"{stage.key('run.name')}={name[:40]}")]
    return []


def check_run(stage: Stage) -> list[Problem]:
    """The job's folder."""
    problems = []
    existing = existing_folder(stage.folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "choose another: base_results_dir=/path, or this key"
        problems.append(Problem(stage.key("run.results_dir"), f"cannot write to {existing}", fix))
    return problems


def check_space(stage: Stage, seen: LaunchProbe) -> list[Problem]:
    """There is room for checkpoints and models."""
    needed = bytes_left(stage, seen)
    if needed is None:
        return []
    folder = existing_folder(stage.folder)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    what = f"{folder} has {free / 2**20:,.0f} MiB free, {stage.name} will leave about {needed / 2**20:,.0f} MiB"
    return [Problem(stage.key("run.results_dir"), what, "make room, or choose another: base_results_dir=/path")]


def existing_folder(folder: Path) -> Path:
    """The nearest one above `folder`, or itself, that is there."""
    return next(path for path in [folder, *folder.parents] if path.exists())
