# SPDX-License-Identifier: Apache-2.0
"""Query Slurm about jobs: squeue for jobs in the queue, sacct for jobs that have left it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from nemo_launcher.clusters.job import JobFiles
from nemo_launcher.clusters.slurm import commands as slurm

# names and widths; columns are fixed because older releases have no separators
QUEUE_FIELDS = {
    "JobID": 24,
    "State": 24,
    "Reason": 60,
    "TimeLeft": 24,
    "RestartCnt": 12,
    "Dependency": 200,
    "PreemptTime": 24,
}
DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
WAITING = ("pending", "requeued", "requeue_hold", "special_exit", "suspended", "configuring")
MAX_PATTERN = 8192
"""Maximum length of a log's path with every % doubled."""
_JOB_ID = "JOB_ID"  # stands for the id in the name of a log
MAX_ASKED = 1000
"""Maximum number of jobs in one command, whose length is limited."""


@dataclass(frozen=True)
class SlurmState:
    """The state of a job."""

    state: str
    """Slurm's name of the state in lower case."""
    reason: str = ""
    """Why the job waits."""
    seconds_left: int | None = None
    """Seconds left of the time limit; None if Slurm gives none."""


@dataclass(frozen=True)
class SlurmStates:
    """Slurm's answer about several jobs."""

    states: dict[str, SlurmState] = field(default_factory=dict)
    """The states by job id."""
    silent: bool = False
    """Whether squeue did not answer, so that a job without a state may still wait or run."""


def ask(job_ids: Collection[str]) -> SlurmStates:
    """Return the states of jobs, from one squeue and one sacct run in parallel per MAX_ASKED jobs."""
    ids = list(dict.fromkeys(job_ids))
    states: dict[str, SlurmState] = {}
    silent = False
    for start in range(0, len(ids), MAX_ASKED):
        some = ids[start : start + MAX_ASKED]
        commands = [_squeue(some), _sacct(some)] if shutil.which("sacct") else [_squeue(some)]
        queue, *accounting = slurm.ask(*commands)
        queued = _read_queue(queue)
        silent = silent or queued is None
        states |= _read_accounting(accounting[0] if accounting else None) | (queued or {})
    return SlurmStates(states, silent)


def find_by_log(patterns: Collection[str]) -> dict[str, str] | None:
    """Return the ids of this user's jobs that write to these logs (`log_pattern`); None when squeue does not answer.

    This finds jobs that a killed launcher has submitted but not recorded.
    """
    fields = f"JobID:{QUEUE_FIELDS['JobID']},StdOut:{MAX_PATTERN}"
    (answer,) = slurm.ask(["squeue", "--me", "--states=all", "--noheader", "--Format", fields])
    if answer is None or answer.returncode:
        return None
    width = QUEUE_FIELDS["JobID"]
    rows = {line[width:].rstrip(): line[:width].strip() for line in answer.stdout.splitlines()}
    return {pattern: rows[pattern] for pattern in patterns if pattern in rows}


def log_pattern(job: JobFiles, suffix: str = "out") -> str:
    """Return a log file's path as Slurm's pattern: %j is the job id, and any other % is doubled."""
    folder, name = os.path.split(job.log_file(_JOB_ID, suffix))
    head, _, tail = name.rpartition(_JOB_ID)
    return f"{os.path.join(folder, head).replace('%', '%%')}%j{tail}"


def cancel(job_ids: Iterable[str]) -> str:
    """Cancel jobs; return scancel's error, empty on success."""
    answer = slurm.order(["scancel", *job_ids])
    if answer is None:
        return "scancel is missing or does not answer"
    return (answer.stderr.strip() or f"scancel: exit status {answer.returncode}") if answer.returncode else ""


def _squeue(job_ids: Iterable[str]) -> list[str]:
    fields = ",".join(f"{name}:{width}" for name, width in QUEUE_FIELDS.items())
    return ["squeue", f"--jobs={','.join(job_ids)}", "--states=all", "--noheader", "--Format", fields]


def _sacct(job_ids: Iterable[str]) -> list[str]:
    return ["sacct", f"--jobs={','.join(job_ids)}", "--format=JobID,State,Reason", "--parsable2"]


def _read_queue(answer: slurm.Answer | None) -> dict[str, SlurmState] | None:
    """Return the states by job id; None when squeue did not answer."""
    if answer is None:
        return None
    if answer.returncode:
        return {} if "Invalid job id" in answer.stderr else None  # Slurm no longer knows the only job in the query
    return dict(_read_queue_line(line) for line in answer.stdout.splitlines() if line.strip())


def _read_queue_line(line: str) -> tuple[str, SlurmState]:
    values, start = {}, 0
    for name, width in QUEUE_FIELDS.items():
        values[name] = line[start : start + width].strip()
        start += width
    state = values["State"].lower()
    reason = "" if state not in WAITING or values["Reason"] in ("None", "(null)") else values["Reason"]
    if state == "pending" and values["RestartCnt"] not in ("", "0"):
        state = "requeued"
    if state in ("failed", "cancelled") and values["PreemptTime"][:1].isdigit():
        state = "preempted"  # it ended by itself during the grace period
    if reason == "Dependency" and values["Dependency"] not in ("", "(null)"):
        reason = f"Dependency: {re.sub(r'[(][a-z]*[)]', '', values['Dependency'])}"
    return values["JobID"], SlurmState(state, reason, seconds(values["TimeLeft"]))


def _read_accounting(answer: slurm.Answer | None) -> dict[str, SlurmState]:
    """Return the states by job id; empty if accounting is off."""
    if answer is None or answer.returncode:
        return {}
    states = {}
    for line in answer.stdout.splitlines()[1:]:
        job_id, state, *_ = [*line.split("|"), ""]
        if job_id.isdigit() and state:  # skip steps; the state may be "CANCELLED by 1000"
            states[job_id] = SlurmState(state.split()[0].lower())
    return states


def seconds(text: str) -> int | None:
    """Parse Slurm's [days-][hours:]minutes:seconds; return None for UNLIMITED and similar words."""
    match = DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
