# SPDX-License-Identifier: Apache-2.0
"""Check the job's name and folder: whether it is writable and has room for the job's outputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nemo_launcher.errors import Problem
from nemo_launcher.launcher.estimate import bytes_left
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage

MAX_JOB_NAME_BYTES = 200
"""Leaves 55 of a file name's 255 bytes for log-<job>_<id>.out and temporary names."""


def check_name(stage: Stage) -> list[Problem]:
    """Check the job's name, with which its file names start."""
    name = stage.job_name
    if not name.strip() or "/" in name or name in (".", "..") or name.startswith("-"):
        return [Problem(stage.key("run.name"), f"{name!r} cannot be a file name", "use letters, digits, _ and -")]
    if len(os.fsencode(name)) > MAX_JOB_NAME_BYTES:
        what = f"has {len(os.fsencode(name))} bytes; a job's name may have {MAX_JOB_NAME_BYTES}"
        return [Problem(stage.key("run.name"), what, f"{stage.key('run.name')}={name[:40]}")]
    return []


def check_run(stage: Stage) -> list[Problem]:
    """Check that the job's folder can be written."""
    problems = []
    existing = existing_folder(stage.folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "choose another: base_results_dir=/path, or this key"
        problems.append(Problem(stage.key("run.results_dir"), f"cannot write to {existing}", fix))
    return problems


def check_space(stage: Stage, probe: LaunchProbe) -> list[Problem]:
    """Check that the disk has room for checkpoints and models."""
    needed = bytes_left(stage, probe)
    if needed is None:
        return []
    folder = existing_folder(stage.folder)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    what = f"{folder} has {free / 2**20:,.0f} MiB free, {stage.name} needs about {needed / 2**20:,.0f} MiB"
    return [Problem(stage.key("run.results_dir"), what, "free some space, or set base_results_dir=/path")]


def existing_folder(folder: Path) -> Path:
    """Return `folder` or its nearest parent that exists."""
    return next(path for path in [folder, *folder.parents] if path.exists())
