"""The state of jobs: Slurm's from Slurm, those of this machine from their process, all others from their folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_launcher.core.job import JobFiles
from nemo_launcher.core.jobs import slurm
from nemo_launcher.core.jobs.process import HOST, is_alive
from nemo_launcher.core.jobs.record import JobRecord, single
from nemo_launcher.progress_file import TrainingState, duration, read_progress

ENDED = (
    *("completed", "failed", "cancelled", "not started", "timeout", "out_of_memory", "node_fail", "boot_fail"),
    *("deadline", "preempted", "revoked"),
)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class JobStatus:
    """A record and what became of it; seconds_left: of Slurm's time limit."""

    record: JobRecord
    state: str
    reason: str = ""
    seconds_left: int | None = None
    training: TrainingState | None = None

    @property
    def is_active(self) -> bool:
        """Whether the job waits or runs, as far as is known."""
        return self.state not in (*ENDED, UNKNOWN)

    @property
    def training_seconds_left(self) -> float | None:
        """Until the end of a running training, at its pace so far."""
        if self.state != "running" or self.training is None or self.training.seconds_left is None:
            return None
        return max(0.0, self.training.seconds_left - (time.time() - self.training.updated))

    @property
    def missing_outputs(self) -> list[Path]:
        """What the job is to make and has not made yet."""
        return [output for output in self.record.outputs if not output.exists()]


def statuses(records: Iterable[JobRecord]) -> list[JobStatus]:
    """Return the states of all jobs, Slurm being asked once, with a job's predecessors in its folder that still run."""
    records = list(records)
    slurm_jobs = [record for record in records if record.cluster_type == "bcm"]
    ids = dict.fromkeys(job_id for r in slurm_jobs for job_id in (r.job_id, *r.earlier) if job_id is not None)
    try:
        answers: dict[str, slurm.SlurmState] | None = slurm.ask(list(ids))
    except slurm.SlurmSilent:
        answers = None
    found = []
    for record in records:
        if record.cluster_type == "bcm":
            before = [_of_slurm(single(record, job_id), answers) for job_id in record.earlier]
            found += [status for status in before if status.is_active] + [_of_slurm(record, answers)]
        else:
            found.append(local_status(record))
    return [_with_facts(status) for status in found]


def _of_slurm(record: JobRecord, answers: dict[str, slurm.SlurmState] | None) -> JobStatus:
    answer = (answers or {}).get(record.job_id or "")
    if answer is not None:
        return JobStatus(record, answer.state, answer.reason, answer.seconds_left)
    if answers is None:
        return _ended(record) or JobStatus(record, UNKNOWN, "Slurm does not answer")
    return _ended(record) or JobStatus(record, UNKNOWN, "Slurm has forgotten it")


def local_status(record: JobRecord) -> JobStatus:
    """Return the state of a job of the interactive launcher or of BCP; on another machine only its folder tells."""
    if record.job_id is None and record.cancelled:
        return JobStatus(record, "cancelled")
    if record.host != HOST or record.process is None:
        if record.job_id is None:
            return JobStatus(record, "pending", f"waits for the stage before, on {record.host}")
        return _ended(record) or JobStatus(record, "running", f"on {record.host}")
    alive = is_alive(record.process)
    if record.job_id is None:
        return JobStatus(record, "pending", "waits for the stage before") if alive else JobStatus(record, "not started")
    if alive:
        return JobStatus(record, "running")
    return _ended(record) or JobStatus(record, *_killed(record))


def _killed(record: JobRecord) -> tuple[str, str]:
    return ("cancelled", "") if record.cancelled else ("failed", "killed")


def _ended(record: JobRecord) -> JobStatus | None:
    """What the exit status that the script has left says; None when there is none."""
    status = exit_status(record)
    if status is None:
        return None
    if status == 0:
        return JobStatus(record, "completed")
    return JobStatus(record, "cancelled") if record.cancelled else JobStatus(record, "failed")


def exit_status(job: JobFiles) -> int | None:
    """Return the exit status of a job's script; None while it runs, or when it was killed."""
    try:
        return int(job.exit_status_file.read_text())
    except (OSError, ValueError):
        return None


def _with_facts(status: JobStatus) -> JobStatus:
    """Add how far a training is, and why a job that has ended is no success."""
    record, reason = status.record, status.reason
    if status.state == "completed" and status.missing_outputs:
        reason = f"without making {', '.join(map(str, status.missing_outputs))}"
    code = exit_status(record)
    if status.state == "failed" and code not in (None, 0):
        reason = f"exit status {code}"
    training = None if record.progress_file is None else read_progress(record.progress_file)
    return dataclasses.replace(status, reason=reason, training=training)


def as_json(status: JobStatus) -> dict[str, Any]:
    """Return a job as `nemo-launcher status --json` gives it."""
    record, training = status.record, status.training
    return {
        "stage": record.stage,
        "name": record.name,
        "job_id": record.job_id,
        "cluster_type": record.cluster_type,
        "state": status.state,
        "active": status.is_active,
        "reason": status.reason,
        "exit_status": None if status.is_active else exit_status(record),
        "step": training and training.step,
        "max_steps": training and training.max_steps,
        "val_loss": training and training.val_loss,
        "seconds_left": status.training_seconds_left,
        "time_limit_seconds_left": status.seconds_left if status.is_active else None,
        "outputs": [str(output) for output in record.outputs],
        "outputs_written": not status.missing_outputs,
        "submitted": record.submitted,
        "folder": str(record.folder),
    }


HEADINGS = ("stage", "job", "id", "state", "step", "val_loss", "left", "output", "folder")


def table(found: Sequence[JobStatus]) -> str:
    """Return the jobs as a table, a line each."""
    rows = [HEADINGS, *(_row(status) for status in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(status: JobStatus) -> tuple[str, ...]:
    record, training = status.record, status.training
    loss = training.val_loss if training is not None else None
    return (
        record.stage,
        record.name,
        record.job_id or "-",
        f"{status.state} ({status.reason})" if status.reason else status.state,
        f"{training.step}/{training.max_steps}" if training is not None else "-",
        f"{loss:.3f}" if loss is not None else "-",
        _left(status),
        "no" if status.missing_outputs else "written",
        str(record.folder),
    )


def _left(status: JobStatus) -> str:
    """Of the training, else of the time limit."""
    left = status.training_seconds_left
    if left is None and status.is_active and status.state == "running":
        left = status.seconds_left
    return "-" if left is None else duration(left)
