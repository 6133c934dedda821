# SPDX-License-Identifier: Apache-2.0
"""The states of jobs, from one query per cluster and from the job folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from nemo_launcher.clusters import CLUSTERS
from nemo_launcher.clusters.record import JobRecord
from nemo_launcher.clusters.state import DAMAGED, UNKNOWN, JobStatus, exists, exit_status, progress
from nemo_launcher.exit_status import INTERRUPTED


@dataclass(frozen=True)
class Statuses:
    """The states of several jobs."""

    jobs: list[JobStatus] = field(default_factory=list)
    """The states, in the order of the records."""
    silent: tuple[str, ...] = ()
    """Titles of the clusters that did not answer."""


def statuses(records: Iterable[JobRecord]) -> Statuses:
    """Return the states of all jobs in order, including earlier jobs from the same folder that are still active."""
    records = list(records)
    found = [[JobStatus(record, DAMAGED, record.damage)] for record in records]
    silent = []
    for kind, cluster in CLUSTERS.items():
        own = [number for number, r in enumerate(records) if r.cluster_type == kind and not r.damage]
        if not own:
            continue
        answers = cluster.states([records[number] for number in own])
        for number, answer in zip(own, answers.found, strict=True):
            found[number] = answer
        silent += [cluster.title] if answers.silent else []
    return Statuses([_with_facts(status) for several in found for status in several], tuple(silent))


def status_of(record: JobRecord) -> JobStatus:
    """Return the state of the job that was started last from the record's folder."""
    return statuses([dataclasses.replace(record, earlier=[])]).jobs[-1]


def _with_facts(status: JobStatus) -> JobStatus:
    """Add a training's progress, the reason of a failure, and the files that cannot be read."""
    record, reasons = status.record, [status.reason] if status.reason else []
    missing = status.missing_outputs
    code = exit_status(record)
    if missing and (status.state == "completed" or (status.state == "failed" and code == 0)):
        reasons = [f"ended without writing {', '.join(map(str, missing))}"]
    if status.state == "failed" and code not in (None, 0):
        reasons = ["interrupted" if code == INTERRUPTED else f"exit status {code}"]
    if status.may_be_active and status.state != UNKNOWN:
        reasons.append(f"{CLUSTERS[record.cluster_type].title} does not answer")
    training = progress(record)
    if training is None and record.progress_file is not None and exists(record.progress_file):
        reasons.append(f"{record.progress_file.name} cannot be read")
    if code is None and exists(record.exit_status_file):
        reasons.append(f"{record.exit_status_file.name} cannot be read")
    return dataclasses.replace(status, reason="; ".join(reasons), training=training)


def as_json(status: JobStatus) -> dict[str, object]:
    """Return a job as `nemo-launcher status --json` prints it."""
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
