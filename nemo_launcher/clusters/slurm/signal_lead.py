# SPDX-License-Identifier: Apache-2.0
"""`cluster.signal`: the signal that Slurm sends before a time limit, checked against the jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.times import minutes
from nemo_launcher.errors import Problem

SIGNAL = re.compile(r"(?:(?P<to>R?B?):)?(?:SIG)?(?P<name>[A-Z0-9]+)(?:@(?P<lead>\d+))?", re.IGNORECASE)
DEFAULT_LEAD_S = 60
HANDLED = ("USR1", "10", "TERM", "15", "INT", "2", "HUP", "1")
KEY = "cluster.signal"


def lead_seconds(text: str) -> int | None:
    """Return how many seconds before the time limit the signal is sent; None for text that only sbatch can check."""
    match = SIGNAL.fullmatch(text)
    return None if match is None else int(match["lead"] or DEFAULT_LEAD_S)


def signal_problems(cluster: Mapping[str, object], jobs: Iterable[Job]) -> list[Problem]:
    """Return what is wrong with the signal itself and with its lead before the trainings' time limits."""
    text = cluster.get("signal")
    match = SIGNAL.fullmatch(text) if isinstance(text, str) else None
    lead = lead_seconds(text) if isinstance(text, str) else None
    if match is None or lead is None:
        return []
    problems = []
    fix = f"{KEY}=USR1@{lead}"
    if "B" in (match["to"] or "").upper():
        what = f"{text!r} is sent only to the job script, not to the training"
        problems.append(Problem(KEY, what, fix))
    if match["name"].upper() not in HANDLED:
        problems.append(Problem(KEY, f"{match['name']} would end a training without a checkpoint", fix))
    for job in jobs:
        if job.progress_file is not None and job.time_limit is not None:
            problems += too_short(f"{job.stage}.run.time_limit", job.time_limit, lead)
    return problems


def too_short(key: str, limit: str, lead: int, *, source: str = "") -> list[Problem]:
    """Return a problem if a time limit is so short that its signal leaves no time to train."""
    try:
        seconds = minutes(limit) * 60
    except ValueError:  # the schema reports a malformed time
        return []
    if seconds > lead:
        return []
    hours, rest = divmod(-(-(lead + 600) // 60), 60)
    what = f"{limit}{source} leaves no time to train: {KEY} stops the training {lead} s before it"
    return [Problem(key, what, f"\"{key}='{hours:02d}:{rest:02d}:00'\", or a shorter lead: {KEY}=USR1@30")]
