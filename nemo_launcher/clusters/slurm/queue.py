# SPDX-License-Identifier: Apache-2.0
"""What Slurm says of jobs: squeue of those in its queue, sacct of those that have left it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from nemo_launcher.clusters.job import JobFiles
from nemo_launcher.clusters.slurm import commands as slurm

# names and widths; fixed ones, as older releases have no separators
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
"""Of the path of a log, every % doubled."""
_JOB_ID = "JOB_ID"  # in place of the id in the name of a log
MAX_ASKED = 1000
"""Jobs in one command, whose length is limited."""


@dataclass(frozen=True)
class SlurmState:
    """The state of a job."""

    state: str
    """Slurm's word in lower case."""
    reason: str = ""
    """Why the job waits."""
    seconds_left: int | None = None
    """Of the time limit; None where Slurm gives none."""


@dataclass(frozen=True)
class SlurmStates:
    """What Slurm knows of the jobs that it was asked about."""

    states: dict[str, SlurmState] = field(default_factory=dict)
    """The states by job id."""
    silent: bool = False
    """Whether squeue did not answer, so that a job without a state may still wait or run."""


def ask(job_ids: Collection[str]) -> SlurmStates:
    """Return the states of jobs, from one squeue and one sacct at the same time for up to MAX_ASKED of them."""
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

    So the jobs are found that a killed launcher has submitted and not recorded.
    """
    fields = f"JobID:{QUEUE_FIELDS['JobID']},StdOut:{MAX_PATTERN}"
    (answer,) = slurm.ask(["squeue", "--me", "--states=all", "--noheader", "--Format", fields])
    if answer is None or answer.returncode:
        return None
    width = QUEUE_FIELDS["JobID"]
    rows = {line[width:].rstrip(): line[:width].strip() for line in answer.stdout.splitlines()}
    return {pattern: rows[pattern] for pattern in patterns if pattern in rows}


def log_pattern(job: JobFiles, suffix: str = "out") -> str:
    """Return a log file as Slurm wants it: %j is the job id, any other % is itself."""
    folder, name = os.path.split(job.log_file(_JOB_ID, suffix))
    head, _, tail = name.rpartition(_JOB_ID)
    return f"{os.path.join(folder, head).replace('%', '%%')}%j{tail}"


def cancel(job_ids: Iterable[str]) -> str:
    """Cancel jobs; return scancel's error, empty on success."""
    answer = slurm.order(["scancel", *job_ids])
    if answer is None:
        return "scancel is not there or does not answer"
    return (answer.stderr.strip() or f"scancel: exit status {answer.returncode}") if answer.returncode else ""


def _squeue(job_ids: Iterable[str]) -> list[str]:
    fields = ",".join(f"{name}:{width}" for name, width in QUEUE_FIELDS.items())
    return ["squeue", f"--jobs={','.join(job_ids)}", "--states=all", "--noheader", "--Format", fields]


def _sacct(job_ids: Iterable[str]) -> list[str]:
    return ["sacct", f"--jobs={','.join(job_ids)}", "--format=JobID,State,Reason", "--parsable2"]


def _read_queue(answer: slurm.Answer | None) -> dict[str, SlurmState] | None:
    """None when squeue did not answer."""
    if answer is None:
        return None
    if answer.returncode:
        return {} if "Invalid job id" in answer.stderr else None  # the one job asked for is forgotten
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
        state = "preempted"  # it has ended by itself in its grace
    if reason == "Dependency" and values["Dependency"] not in ("", "(null)"):
        reason = f"Dependency: {re.sub(r'[(][a-z]*[)]', '', values['Dependency'])}"
    return values["JobID"], SlurmState(state, reason, seconds(values["TimeLeft"]))


def _read_accounting(answer: slurm.Answer | None) -> dict[str, SlurmState]:
    """Nothing where accounting is switched off, too."""
    if answer is None or answer.returncode:
        return {}
    states = {}
    for line in answer.stdout.splitlines()[1:]:
        job_id, state, *_ = [*line.split("|"), ""]
        if job_id.isdigit() and state:  # not of a step; "CANCELLED by 1000"
            states[job_id] = SlurmState(state.split()[0].lower())
    return states


def seconds(text: str) -> int | None:
    """Read Slurm's [days-][hours:]minutes:seconds; None for UNLIMITED and the like."""
    match = DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest
