# SPDX-License-Identifier: Apache-2.0
"""The states of jobs on Kubernetes, from the Job's conditions, its pods and the job folders."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from nemo_launcher.clusters.base import Answers
from nemo_launcher.clusters.kubernetes import kubectl
from nemo_launcher.clusters.kubernetes.kubectl import JobAndPods, at, listed
from nemo_launcher.clusters.kubernetes.manifest import load, object_name_of
from nemo_launcher.clusters.local import cancel_local, is_lost, mark_cancelled, not_submitted
from nemo_launcher.clusters.record import JobRecord, read, refuse_foreign
from nemo_launcher.clusters.state import UNKNOWN, JobStatus, ended, exit_status, silent
from nemo_launcher.clusters.text import title
from nemo_launcher.errors import UserError
from nemo_launcher.exit_status import STOPPED

TITLE = "Kubernetes"
NAMESPACE = "namespace"
"""The key in a record's `of_cluster`."""
_FAILURES = {"DeadlineExceeded": "timeout"}
"""Maps the reason of a Job's failure to a state other than `failed`."""


def namespace_of(record: JobRecord) -> str:
    """Return the namespace of a job."""
    return record.of_cluster.get(NAMESPACE, "default")


def states(records: Sequence[JobRecord]) -> Answers:
    """Return the states of jobs, with one kubectl query per namespace."""
    records = [_with_lost_id(record) for record in records]
    names: dict[str, list[str]] = {}
    for record in records:
        if record.job_id is not None:
            names.setdefault(namespace_of(record), []).append(record.job_id)
    answers = {namespace: kubectl.find(namespace, wanted) for namespace, wanted in names.items()}
    found = [[_state(record, answers.get(namespace_of(record)))] for record in records]
    return Answers(found, silent=None in answers.values())


def _with_lost_id(record: JobRecord) -> JobRecord:
    """Restore the id of a job whose launcher was killed after submitting it and before recording it."""
    if not is_lost(record):
        return record
    try:
        name = object_name_of(load(record))
    except UserError:
        return record
    found = kubectl.find(namespace_of(record), [name])
    return record if not found else dataclasses.replace(record, job_id=name)


def _state(record: JobRecord, answer: dict[str, JobAndPods] | None) -> JobStatus:
    if record.job_id is None:
        return not_submitted(record)
    if answer is None:
        return silent(record, TITLE)
    found = answer.get(record.job_id)
    if found is None:
        return _gone(record)
    failure = _condition(found, "Failed")
    status = exit_status(record)
    if failure is not None and not record.cancelled and _ends_with(record, status, failure):
        return _failed(record, failure)
    if status is not None and not (status == STOPPED and failure is None):
        return ended(record) or JobStatus(record, UNKNOWN)  # the state of this stage does not depend on the later ones
    if record.cancelled:
        return JobStatus(record, "cancelled")
    if _condition(found, "Complete") is not None:
        return ended(record) or JobStatus(record, "completed")
    if failure is not None:
        return _failed(record, failure)
    if _waits_for_stage(record):
        return JobStatus(record, "pending", "waits for previous stage")
    return _active(record, found, was_stopped=status == STOPPED)


def _gone(record: JobRecord) -> JobStatus:
    if exit_status(record) is None and record.cancelled:
        return JobStatus(record, "cancelled")
    return ended(record) or JobStatus(record, UNKNOWN, f"{TITLE} no longer knows it")


def _condition(found: JobAndPods, kind: str) -> dict[str, object] | None:
    conditions = listed(found.job, "status", "conditions")
    return next((c for c in conditions if c.get("type") == kind and c.get("status") == "True"), None)


def _failed(record: JobRecord, condition: dict[str, object]) -> JobStatus:
    reason, message = str(condition.get("reason") or ""), str(condition.get("message") or "")
    if _waits_for_stage(record):
        return JobStatus(record, "not started")
    return JobStatus(record, _FAILURES.get(reason, "failed"), ": ".join(filter(None, (reason, message))))


def _ends_with(record: JobRecord, status: int | None, failure: dict[str, object]) -> bool:
    """Return whether a Job's failure overrides a stage's exit status, which is that of its first pod.

    A stage that a deadline ends may save and exit normally, and a pod may fail after the first pod has succeeded.
    """
    if status != 0:
        return status is not None and failure.get("reason") in _FAILURES
    after = None if record.after is None else read(record.after)
    return after is None or after.job_id != record.job_id


def _waits_for_stage(record: JobRecord) -> bool:
    """Return whether the previous stage, in the same pods, does not allow this one to start yet."""
    before = None if record.before is None else read(record.before)
    if before is None or before.damage or before.job_id != record.job_id:
        return False
    status = exit_status(before)
    return status is None or status == STOPPED or (status != 0 and record.edge != "afterany")


def _active(record: JobRecord, found: JobAndPods, *, was_stopped: bool) -> JobStatus:
    left = _seconds_left(found)
    if any(at(pod, "status", "phase") == "Running" for pod in found.pods) or any(map(_runs_a_stage, found.pods)):
        return JobStatus(record, "running", seconds_left=left)
    reason = next(filter(None, map(_waiting, found.pods)), "")
    if was_stopped or at(found.job, "status", "failed"):
        return JobStatus(record, "requeued", reason or "resumes from its checkpoint in a new pod", left)
    return JobStatus(record, "pending", reason, left)


def _runs_a_stage(pod: dict[str, object]) -> bool:
    """Return whether an init container, which is a stage of a chain, runs in a pod."""
    return any(isinstance(at(c, "state", "running"), dict) for c in listed(pod, "status", "initContainerStatuses"))


def _waiting(pod: dict[str, object]) -> str:
    """Return why a pod does not run yet."""
    for statuses in ("initContainerStatuses", "containerStatuses"):
        for container in listed(pod, "status", statuses):
            reason = at(container, "state", "waiting", "reason")
            if reason not in (None, "PodInitializing", "ContainerCreating"):
                return _joined(reason, at(container, "state", "waiting", "message"))
    for condition in listed(pod, "status", "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _joined(condition.get("reason"), condition.get("message"))
    return ""


def _joined(*parts: object) -> str:
    return ": ".join(str(part) for part in parts if part)


def _seconds_left(found: JobAndPods) -> int | None:
    limit, start = at(found.job, "spec", "activeDeadlineSeconds"), at(found.job, "status", "startTime")
    if not isinstance(limit, int) or not isinstance(start, str):
        return None
    try:
        began = datetime.fromisoformat(start).timestamp()
    except ValueError:
        return None
    return max(0, int(began + limit - time.time()))


def cancel(found: Sequence[JobStatus]) -> bool:
    """Delete Jobs. A stage that has not started is only marked, so that its script skips it."""
    done = [cancel_local(status.record) for status in found if status.record.job_id is None]
    named = [status for status in found if status.record.job_id is not None]
    for status in named:
        refuse_foreign(status.record)
    chosen = {(status.record.job_id, status.record.stage) for status in named}
    waiting = [s.record for s in named if _waits_for_stage(s.record) and not _runs_in(s.record, chosen)]
    for record in waiting:
        mark_cancelled(record)
        print(f"{title(record)}: will not be started")
    to_delete: dict[tuple[str, str], list[JobStatus]] = {}
    for status in named:
        if status.record not in waiting:
            to_delete.setdefault((namespace_of(status.record), str(status.record.job_id)), []).append(status)
    done += [_delete(namespace, name, several) for (namespace, name), several in to_delete.items()]
    return all(done)


def _runs_in(record: JobRecord, chosen: set[tuple[str | None, str]]) -> bool:
    """Return whether the previous stage is to be cancelled too, and with it the pods of both."""
    before = None if record.before is None else read(record.before)
    return before is not None and (before.job_id, before.stage) in chosen


def _delete(namespace: str, name: str, several: list[JobStatus]) -> bool:
    unknown = any(status.may_be_active for status in several)
    if unknown:
        print(f"{TITLE} did not answer: whether {name} waits or runs is unknown; trying kubectl", file=sys.stderr)
    refusal = kubectl.refusal(
        kubectl.order(namespace, "delete", f"job/{name}", f"service/{name}", "--ignore-not-found", "--wait=false")
    )
    if refusal:
        print(f"not cancelled: {refusal}", file=sys.stderr)
        return False
    for status in several:
        mark_cancelled(status.record)
        print(f"{title(status.record)}: cancelled (kubectl delete)")
    return not unknown
