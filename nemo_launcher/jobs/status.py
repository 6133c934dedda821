# SPDX-License-Identifier: Apache-2.0
"""The state of jobs: Slurm's from Slurm, those of this machine from their process, all others from their folder."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_launcher.clusters.interactive.process import HOST, is_alive
from nemo_launcher.clusters.slurm import queries as slurm
from nemo_launcher.errors import UserError
from nemo_launcher.exit_status import INTERRUPTED, STOPPED
from nemo_launcher.files.foreign import read_bytes
from nemo_launcher.jobs.job import JobFiles
from nemo_launcher.jobs.record import JobRecord
from nemo_launcher.jobs.search import single
from nemo_launcher.runtime.progress_file import SUMMARY_NAME, TrainingState, load_progress

ENDED = (
    *("completed", "failed", "cancelled", "not started", "timeout", "out_of_memory", "node_fail", "boot_fail"),
    *("deadline", "preempted", "revoked"),
)
UNKNOWN = "unknown"
DAMAGED = "damaged record"
MAX_EXIT_STATUS_BYTES = 64


@dataclass(frozen=True)
class JobStatus:
    """A record and what became of it.

    seconds_left: of Slurm's time limit. may_be_active: the job may wait or run though its state does not say so,
    because Slurm did not answer.
    """

    record: JobRecord
    state: str
    reason: str = ""
    seconds_left: int | None = None
    training: TrainingState | None = None
    may_be_active: bool = False

    @property
    def is_active(self) -> bool:
        """Whether the job waits or runs, as far as is known."""
        return self.state not in (*ENDED, UNKNOWN, DAMAGED)

    @property
    def training_seconds_left(self) -> float | None:
        """Until the end of a running training, at its pace so far."""
        if self.state != "running" or self.training is None or self.training.seconds_left is None:
            return None
        return max(0.0, self.training.seconds_left - (time.time() - self.training.updated))

    @property
    def missing_outputs(self) -> list[Path]:
        """What the job is to make and has not made yet."""
        return [output for output in self.record.outputs if not _exists(output)]


@dataclass(frozen=True)
class Statuses:
    """The states of several jobs; slurm_is_silent: it was asked for some of them and did not answer."""

    jobs: list[JobStatus] = field(default_factory=list)
    slurm_is_silent: bool = False


def statuses(records: Iterable[JobRecord]) -> Statuses:
    """Return the states of all jobs, Slurm being asked once, with a job's predecessors in its folder that still run."""
    records = _with_lost_ids(list(records))
    asked = [r for r in records if r.cluster_type == "bcm" and not r.damage]
    ids = dict.fromkeys(job_id for r in asked for job_id in (r.job_id, *r.earlier) if job_id is not None)
    answers = slurm.ask(list(ids))
    found: list[JobStatus] = []
    for record in records:
        if record.cluster_type == "bcm" and not record.damage:
            before = [_of_slurm(single(record, job_id), answers) for job_id in record.earlier]
            found += [status for status in before if status.is_active]
        found.append(_status(record, answers))
    return Statuses([_with_facts(status) for status in found], answers.silent)


def _with_lost_ids(records: list[JobRecord]) -> list[JobRecord]:
    """Give their ids to jobs whose launcher was killed between sbatch's answer and the record of it."""
    lost = {slurm.log_pattern(record): record for record in records if _is_lost(record)}
    if not lost:
        return records
    found = slurm.find_by_log(lost)
    if found is None:
        return records
    ids = {lost[pattern].record_file: job_id for pattern, job_id in found.items()}
    return [
        dataclasses.replace(
            r, job_id=ids[r.record_file], logs=[r.log_file(ids[r.record_file]), r.log_file(ids[r.record_file], "err")]
        )
        if r.record_file in ids
        else r
        for r in records
    ]


def _is_lost(record: JobRecord) -> bool:
    waits = record.cluster_type == "bcm" and record.job_id is None and not record.damage
    return waits and record.process is not None and record.host == HOST and not is_alive(record.process)


def status_of(record: JobRecord) -> JobStatus:
    """Return the state of the job that was started last from a folder."""
    return statuses([dataclasses.replace(record, earlier=[])]).jobs[-1]


def _status(record: JobRecord, answers: slurm.SlurmStates) -> JobStatus:
    if record.damage:
        return JobStatus(record, DAMAGED, record.damage)
    if record.cluster_type != "bcm":
        return local_status(record)
    return _of_slurm(record, answers) if record.job_id is not None else _not_submitted(record)


def _not_submitted(record: JobRecord) -> JobStatus:
    """A job whose launcher has not come to its submission: it was interrupted, refused, or is at work."""
    if record.host == HOST and record.process is not None and is_alive(record.process):
        return JobStatus(record, "pending", "is being submitted")
    return JobStatus(record, "not started", "was not submitted")


def _of_slurm(record: JobRecord, answers: slurm.SlurmStates) -> JobStatus:
    answer = answers.states.get(record.job_id or "")
    if answer is not None:
        return JobStatus(record, answer.state, answer.reason, answer.seconds_left)
    if not answers.silent:
        return _ended(record) or JobStatus(record, UNKNOWN, "Slurm has forgotten it")
    known = _ended(record)
    if known is not None and known.state == "completed":
        return known
    if known is None:
        return JobStatus(record, UNKNOWN, "Slurm does not answer", may_be_active=True)
    return dataclasses.replace(known, may_be_active=True)


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
        return _ended_well(record)
    if record.cancelled:
        return JobStatus(record, "cancelled")
    if status == STOPPED and record.requeue:
        return JobStatus(record, "requeued", "stopped ahead of its time limit; it goes on from its checkpoint")
    return JobStatus(record, "failed")


def _ended_well(record: JobRecord) -> JobStatus:
    """Hold an exit status of 0 against what the job has made: srun ends with 0 on a node that fails under it."""
    if any(not _exists(output) for output in record.outputs):
        # the local launcher tells this as a failure, too
        return JobStatus(record, "failed" if record.cluster_type == "bcm" else "completed")
    training = _progress(record)
    if training is None or training.step >= training.max_steps or _has_summary(record):
        return JobStatus(record, "completed")
    return JobStatus(record, "failed", f"ended after step {training.step} of {training.max_steps}")


def _has_summary(record: JobRecord) -> bool:
    """Whether this training has come to an end of its own, as with max_time or early stopping."""
    assert record.progress_file is not None
    try:
        summary = record.progress_file.with_name(SUMMARY_NAME).stat().st_mtime
        return summary >= record.progress_file.stat().st_mtime - 1
    except OSError:
        return False


def exit_status(job: JobFiles) -> int | None:
    """Return the exit status of a job's script; None while it runs, or when it was killed."""
    try:
        text = read_bytes(job.exit_status_file, MAX_EXIT_STATUS_BYTES).strip()
    except (OSError, UserError):
        return None
    return int(text) if text.isdigit() and int(text) <= 255 else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder of another user
        return False


def _progress(record: JobRecord) -> TrainingState | None:
    """None before the first step, and where the file cannot be read."""
    try:
        return None if record.progress_file is None else load_progress(record.progress_file)
    except (OSError, UserError):
        return None


def _with_facts(status: JobStatus) -> JobStatus:
    """Add how far a training is, why a job that has ended is no success, and which of its files cannot be read."""
    record, reasons = status.record, [status.reason] if status.reason else []
    missing = status.missing_outputs
    code = exit_status(record)
    if missing and (status.state == "completed" or (status.state == "failed" and code == 0)):
        reasons = [f"without making {', '.join(map(str, missing))}"]
    if status.state == "failed" and code not in (None, 0):
        reasons = ["interrupted" if code == INTERRUPTED else f"exit status {code}"]
    if status.may_be_active and status.state != UNKNOWN:
        reasons.append("Slurm does not answer")
    training = _progress(record)
    if training is None and record.progress_file is not None and _exists(record.progress_file):
        reasons.append(f"{record.progress_file.name} cannot be read")
    if code is None and _exists(record.exit_status_file):
        reasons.append(f"{record.exit_status_file.name} cannot be read")
    return dataclasses.replace(status, reason="; ".join(reasons), training=training)


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
        "outputs_written": not record.damage and not status.missing_outputs,
        "submitted": record.submitted,
        "folder": str(record.folder),
    }
