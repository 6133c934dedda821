# SPDX-License-Identifier: Apache-2.0
"""States of jobs that were submitted to Slurm, and cancelling them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.clusters.base import Answers
from nemo_launcher.clusters.local import cancel_local, is_lost, mark_cancelled, not_submitted
from nemo_launcher.clusters.record import JobRecord, refuse_foreign
from nemo_launcher.clusters.slurm import queue
from nemo_launcher.clusters.state import UNKNOWN, JobStatus, ended, silent
from nemo_launcher.clusters.text import title


def logs_of(record: JobRecord, job_id: str) -> list[Path]:
    """Return the files of a job's standard output and error."""
    return [record.log_file(job_id), record.log_file(job_id, "err")]


def states(records: Sequence[JobRecord]) -> Answers:
    """Return the states of jobs with one query of Slurm for all of them."""
    records = _with_lost_ids(records)
    ids = dict.fromkeys(job_id for r in records for job_id in (r.job_id, *r.earlier) if job_id is not None)
    answers = queue.ask(list(ids))
    found = []
    for record in records:
        before = [_state(_single(record, job_id), answers) for job_id in record.earlier]
        found.append([*(status for status in before if status.is_active), _state(record, answers)])
    return Answers(found, answers.silent)


def state_of(record: JobRecord) -> JobStatus:
    """Return the state of the job that was started last from the record's folder."""
    return states([dataclasses.replace(record, earlier=[])]).found[0][-1]


def _single(record: JobRecord, job_id: str) -> JobRecord:
    return dataclasses.replace(record, job_id=job_id, logs=logs_of(record, job_id), earlier=[])


def _with_lost_ids(records: Sequence[JobRecord]) -> list[JobRecord]:
    """Restore the ids of jobs whose launcher was killed after submitting them and before recording them."""
    lost = {queue.log_pattern(record): record for record in records if is_lost(record)}
    found = queue.find_by_log(lost) if lost else None
    ids = {lost[pattern].record_file: job_id for pattern, job_id in (found or {}).items()}
    return [
        dataclasses.replace(r, job_id=ids[r.record_file], logs=logs_of(r, ids[r.record_file]))
        if r.record_file in ids
        else r
        for r in records
    ]


def _state(record: JobRecord, answers: queue.SlurmStates) -> JobStatus:
    if record.job_id is None:
        return not_submitted(record)
    answer = answers.states.get(record.job_id)
    if answer is not None:
        return JobStatus(record, answer.state, answer.reason, answer.seconds_left)
    if answers.silent:
        return silent(record, "Slurm")
    return ended(record) or JobStatus(record, UNKNOWN, "Slurm no longer knows it")


def cancel(found: Sequence[JobStatus]) -> bool:
    """Cancel jobs with scancel; jobs that are not submitted yet are marked, and their launcher skips them."""
    done = [cancel_local(status.record) for status in found if status.record.job_id is None]
    return _scancel([status for status in found if status.record.job_id is not None]) and all(done)


def _scancel(found: Sequence[JobStatus]) -> bool:
    if not found:
        return True
    jobs = [status.record for status in found]
    for job in jobs:
        refuse_foreign(job)
    unknown = [status.record for status in found if status.may_be_active]
    if unknown:
        shown = ", ".join(str(job.job_id) for job in unknown)
        print(f"Slurm did not answer: whether job {shown} waits or runs is unknown; trying scancel", file=sys.stderr)
    refusal = queue.cancel([str(job.job_id) for job in jobs])
    if refusal:
        print(f"not cancelled: {refusal}", file=sys.stderr)
        return False
    for job in jobs:
        mark_cancelled(job)
        print(f"{title(job)}: cancelled (scancel)")
    return not unknown
