# SPDX-License-Identifier: Apache-2.0
"""Jobs that run as local processes, and jobs of any cluster that a local launcher has yet to submit."""

from __future__ import annotations

import dataclasses
import sys

from nemo_launcher.clusters import record as records
from nemo_launcher.clusters.process import HOST, end_group, is_alive, runs_script
from nemo_launcher.clusters.record import JobRecord, refuse_foreign
from nemo_launcher.clusters.state import JobStatus, ended
from nemo_launcher.clusters.text import title

GRACE_S = 60.0
"""Seconds that a local job may take to save and end after `cancel` before it is killed."""


def local_status(record: JobRecord) -> JobStatus:
    """Return the state of a local job; for one on another machine, only from its folder."""
    if record.job_id is None and record.cancelled:
        return JobStatus(record, "cancelled")
    if record.host != HOST or record.process is None:
        if record.job_id is None:
            return JobStatus(record, "pending", f"waits for previous stage, on {record.host}")
        return _ended(record) or JobStatus(record, "running", f"on {record.host}")
    alive = is_alive(record.process)
    if record.job_id is None:
        waits = JobStatus(record, "pending", "waits for previous stage")
        return waits if alive else JobStatus(record, "not started")
    if alive:
        return JobStatus(record, "running")
    return _ended(record) or JobStatus(record, *_killed(record))


def _ended(record: JobRecord) -> JobStatus | None:
    """Return the state from the exit status; missing outputs have already been reported by the launcher."""
    return ended(record, without_outputs="completed")


def _killed(record: JobRecord) -> tuple[str, str]:
    return ("cancelled", "") if record.cancelled else ("failed", "killed")


def not_submitted(record: JobRecord) -> JobStatus:
    """Return the state of a job without an id: its launcher is at work, was interrupted or was refused."""
    if record.host == HOST and record.process is not None and is_alive(record.process):
        return JobStatus(record, "pending", "is being submitted")
    return JobStatus(record, "not started", "was not submitted")


def is_lost(record: JobRecord) -> bool:
    """Return whether a job's launcher may have ended after submitting it and before recording it."""
    gone = record.process is not None and record.host == HOST and not is_alive(record.process)
    return record.job_id is None and gone


def cancel_local(job: JobRecord) -> bool:
    """End a job's processes. A job that only waits is marked, and its launcher skips it."""
    refuse_foreign(job)
    if job.host != HOST or job.process is None:
        print(f"{title(job)}: not cancelled, it runs on {job.host}: cancel it there", file=sys.stderr)
        return False
    if job.job_id is not None and not runs_script(job.process[0], job.script_file):
        print(f"{title(job)}: not cancelled, process {job.job_id} does not run {job.script_file}", file=sys.stderr)
        return False
    records.write(dataclasses.replace(job, cancelled=True))
    done = "will not be started" if job.job_id is None else end_group(job.process, GRACE_S)
    print(f"{title(job)}: {done}", flush=True)
    return True


def mark_cancelled(job: JobRecord) -> None:
    """Mark a job's record as cancelled, unless a newer job has started from the folder."""
    now = records.read(job.record_file)
    if now is not None and now.job_id == job.job_id:
        records.write(dataclasses.replace(now, cancelled=True))
