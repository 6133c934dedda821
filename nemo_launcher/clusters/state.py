# SPDX-License-Identifier: Apache-2.0
"""The state of a job, and what its folder contributes: exit status, progress and outputs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.clusters.job import JobFiles
from nemo_launcher.clusters.record import JobRecord
from nemo_launcher.errors import UserError
from nemo_launcher.exit_status import STOPPED
from nemo_launcher.files.foreign import read_bytes
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
    """A record and the state of its job."""

    record: JobRecord
    """The record."""
    state: str
    """The state in one word."""
    reason: str = ""
    """The reason of the state."""
    seconds_left: int | None = None
    """Seconds left of the cluster's time limit."""
    training: TrainingState | None = None
    """The progress of a training."""
    may_be_active: bool = False
    """Whether the job may be active despite its state, because the cluster did not answer."""

    @property
    def is_active(self) -> bool:
        """Whether the job waits or runs, as far as is known."""
        return self.state not in (*ENDED, UNKNOWN, DAMAGED)

    @property
    def training_seconds_left(self) -> float | None:
        """Seconds until the end of a running training at its pace so far."""
        if self.state != "running" or self.training is None or self.training.seconds_left is None:
            return None
        return max(0.0, self.training.seconds_left - (time.time() - self.training.updated))

    @property
    def missing_outputs(self) -> list[Path]:
        """The outputs that do not exist yet."""
        return [output for output in self.record.outputs if not exists(output)]


def ended(record: JobRecord, *, without_outputs: str = "failed") -> JobStatus | None:
    """Return the state that follows from the script's exit status; None when there is none.

    without_outputs: the state of a job that ended with 0 but lacks outputs.
    """
    status = exit_status(record)
    if status is None:
        return None
    if status == 0:
        return _ended_well(record, without_outputs)
    if record.cancelled:
        return JobStatus(record, "cancelled")
    if status == STOPPED and record.requeue:
        return JobStatus(record, "requeued", "stopped before its time limit; it resumes from its checkpoint")
    return JobStatus(record, "failed")


def _ended_well(record: JobRecord, without_outputs: str) -> JobStatus:
    """Check an exit status of 0 against the outputs, since srun ends with 0 when its node fails."""
    if any(not exists(output) for output in record.outputs):
        return JobStatus(record, without_outputs)
    training = progress(record)
    if training is None or training.step >= training.max_steps or _has_summary(record):
        return JobStatus(record, "completed")
    return JobStatus(record, "failed", f"ended after step {training.step} of {training.max_steps}")


def _has_summary(record: JobRecord) -> bool:
    """Return whether this training ended regularly before max_steps, as with max_time or early stopping."""
    assert record.progress_file is not None
    try:
        summary = record.progress_file.with_name(SUMMARY_NAME).stat().st_mtime
        return summary >= record.progress_file.stat().st_mtime - 1
    except OSError:
        return False


def silent(record: JobRecord, title: str) -> JobStatus:
    """Return a job's state from its folder when its cluster, called `title`, does not answer."""
    known = ended(record)
    if known is None:
        return JobStatus(record, UNKNOWN, f"{title} does not answer", may_be_active=True)
    return known if known.state == "completed" else JobStatus(record, known.state, known.reason, may_be_active=True)


def exit_status(job: JobFiles) -> int | None:
    """Return the exit status of a job's script; None while it runs, or when it was killed."""
    try:
        text = read_bytes(job.exit_status_file, MAX_EXIT_STATUS_BYTES).strip()
    except (OSError, UserError):
        return None
    return int(text) if text.isdigit() and int(text) <= 255 else None


def exists(path: Path) -> bool:
    """Return whether a file exists, as far as this user can see."""
    try:
        return path.exists()
    except OSError:  # in another user's folder
        return False


def progress(record: JobRecord) -> TrainingState | None:
    """Return a training's progress; None before the first step or if the file cannot be read."""
    try:
        return None if record.progress_file is None else load_progress(record.progress_file)
    except (OSError, UserError):
        return None
