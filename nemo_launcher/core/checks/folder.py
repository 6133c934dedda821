"""The job's name, time limit and folder: can it be written, and is there room for what the job will leave?"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from nemo_launcher.core.estimate import bytes_left
from nemo_launcher.core.stages import Stage
from nemo_launcher.core.surroundings import Surroundings
from nemo_launcher.errors import Problem

TIME_LIMIT = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")


def check_run(stage: Stage) -> list[Problem]:
    """The job's name, folder and time limit."""
    problems = []
    name, limit = stage.job_name, stage.run["time_limit"]
    if not name or "/" in name or not name.isprintable():
        problems.append(
            Problem(stage.key("run.name"), f"{name!r} cannot be a file name", "use letters, digits, _ and -")
        )
    if limit is not None and not TIME_LIMIT.fullmatch(limit):
        fix = f"write hours, minutes, seconds: \"{stage.key('run.time_limit')}='04:00:00'\""
        problems.append(Problem(stage.key("run.time_limit"), f"{limit!r} is not a time", fix))
    existing = existing_folder(stage.folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "choose another: base_results_dir=/path, or this key"
        problems.append(Problem(stage.key("run.results_dir"), f"cannot write to {existing}", fix))
    return problems


def check_space(stage: Stage, seen: Surroundings) -> list[Problem]:
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
