"""What of a launch is done or under way already: the same command goes on where an earlier one ended."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_launcher.core import job as job_folder
from nemo_launcher.core.job import Job
from nemo_launcher.core.jobs.record import JobRecord, read, record_file
from nemo_launcher.core.jobs.status import JobStatus, statuses
from nemo_launcher.errors import Problem, UserError

if TYPE_CHECKING:
    from nemo_launcher.core.preflight import Plan


@dataclass(frozen=True)
class Step:
    """One job of a plan. skipped: why it is not launched, empty for one that is; seen: its record as it was found."""

    job: Job
    skipped: str
    seen: JobRecord | None


def review(plans: Sequence[Plan]) -> list[list[Step]]:
    """Return the steps of each plan; what is active, or complete with the same configuration, is skipped.

    A stage behind one that is launched or active is launched, whatever it has made before. Raises UserError for a
    folder whose job is active with another configuration, or which may be.
    """
    jobs = {record_file(job): job for plan in plans for job in plan.jobs}
    found = {path: record for path in jobs if (record := read(path)) is not None and not record.damage}
    latest: dict[Path, list[JobStatus]] = {}
    for status in statuses(found.values()).jobs:
        latest.setdefault(status.record.record_file, []).append(status)
    problems: dict[Problem, None] = {}
    steps = []
    for plan in plans:
        plan_steps, is_behind = [], False
        for job in plan.jobs:
            known = latest.get(record_file(job), [])
            skipped, problem = _standing(plan, job, known, is_behind=is_behind)
            if problem is not None:
                problems[problem] = None
            is_behind = is_behind or not skipped or any(status.is_active for status in known)
            plan_steps.append(Step(job, skipped, found.get(record_file(job))))
        steps.append(plan_steps)
    if problems:
        raise UserError(problems)
    return steps


def check_unchanged(steps: Iterable[Step]) -> None:
    """Raise UserError where another launcher has come in between; called with the folders locked."""
    for step in steps:
        now = read(record_file(step.job))
        if now is not None and not now.damage and (step.seen is None or _start(now) != _start(step.seen)):
            what = f"another launcher has just started {now.title} there"
            raise UserError(Problem(str(step.job.folder), what, "nemo-launcher status tells how it stands"))


def _start(record: JobRecord) -> tuple[str | None, float]:
    return record.job_id, record.submitted


def _standing(plan: Plan, job: Job, known: list[JobStatus], *, is_behind: bool) -> tuple[str, Problem | None]:
    """Return why a job is skipped, and what is wrong with launching it."""
    folder = shlex.quote(str(job.folder))
    for status in known:
        queued = status.record.cluster_type == plan.launcher.cluster_type and plan.launcher.queues
        what = f"{status.record.title} is {status.state}"
        is_same = queued and _is_same(plan, job, script=True)
        if plan.debug and is_same:
            continue  # what is written is there already
        if status.may_be_active:
            what = f"Slurm did not answer: whether {status.record.title} waits or runs there is unknown"
            return "", _problem(job, what, "try again when squeue answers")
        if status.is_active and is_same:
            return what, None
        if status.is_active:
            more = " there with another script or configuration" if queued else f" in {job.folder}"
            return "", _problem(job, what + more, f"wait for its end, or: nemo-launcher cancel {folder}")
    last = known[-1] if known else None
    is_done = last is not None and last.state == "completed" and not last.missing_outputs
    if last is None or not is_done or plan.debug or is_behind or not _is_same(plan, job, script=False):
        return "", None
    if _is_outdated(job):
        return "", None
    return f"{last.record.title} is complete; nemo-launcher rerun {folder} runs it again", None


def _problem(job: Job, what: str, fix: str) -> Problem:
    return Problem(f"{job.stage}.run.results_dir", what, fix)


def _is_same(plan: Plan, job: Job, *, script: bool) -> bool:
    """Whether the folder holds the configuration, and the script, that would be written."""
    wanted = {job.config_file: job_folder.config_text(job)}
    if script:
        wanted[job.script_file] = plan.launcher.script(job)
    try:
        return all(path.read_text(encoding="utf-8") == text for path, text in wanted.items())
    except (OSError, UnicodeDecodeError):
        return False


def _is_outdated(job: Job) -> bool:
    """Whether something that the job reads was written, or put there with an older date, after what it has made."""
    try:
        made = min((path.stat().st_mtime for path in job.outputs), default=None)
        changed = (max(path.stat().st_mtime, path.stat().st_ctime) for path in job.inputs if path.exists())
        return made is not None and any(time > made for time in changed)
    except OSError:
        return True
