# SPDX-License-Identifier: Apache-2.0
"""What of a launch is done or under way already: the same command goes on where an earlier one ended."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.clusters import CLUSTERS
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.record import JobRecord, find, read, record_file
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.config.load import complete
from nemo_launcher.config.resume_rules import LAST_DIGITS, differing_keys, is_below
from nemo_launcher.config.schema import check
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.jobs.status import statuses

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from nemo_launcher.launcher.plan import Plan


@dataclass(frozen=True)
class Step:
    """One job of a plan."""

    job: Job
    """The job."""
    skipped: str
    """Why it is not launched; empty for one that is."""
    seen: JobRecord | None
    """Its record as it was found; None without one."""


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
    problems: dict[Problem, None] = dict.fromkeys(_written_by_others(plans, set(jobs)))
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


def _written_by_others(plans: Sequence[Plan], own: set[Path]) -> list[Problem]:
    """Return the outputs that active jobs of other folders below base_results_dir are to write.

    Files that are there already are told of before; those of queued jobs are not there yet.
    """
    writers = {
        os.path.realpath(output.path): output.key
        for plan in plans
        for stage in plan.stages
        for output in stage.writes()
        if not plan.debug and output.path in stage.outputs() and not output.path.exists()
    }
    if not writers:
        return []
    roots = dict.fromkeys(plan.cluster.settings.base_results_dir for plan in plans)
    others = [record for root in roots for record in find(root) if not record.damage and record.record_file not in own]
    shared = {
        record.record_file: (record, output)
        for record in others
        for output in record.outputs
        if os.path.realpath(output) in writers
    }
    problems = []
    for status in statuses(record for record, _ in shared.values()).jobs if shared else ():
        if status.is_active:
            record, output = shared[status.record.record_file]
            what = f"{output} is to be written by {record.title} in {record.folder}, which is {status.state}"
            fix = "give it another path, or wait for that job's end"
            problems.append(Problem(writers[os.path.realpath(output)], what, fix))
    return problems


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
        queued = status.record.cluster_type == plan.cluster.cluster_type and plan.cluster.queues
        what = f"{status.record.title} is {status.state}"
        is_same = queued and _is_same(plan, job, script=True)
        if plan.debug and is_same:
            continue  # what is written is there already
        if status.may_be_active:
            asked = CLUSTERS[status.record.cluster_type]
            what = f"{asked.title} did not answer: whether {status.record.title} waits or runs there is unknown"
            return "", _problem(job, what, f"try again when {asked.asks_with} answers")
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
    """Whether the folder holds the configuration, and the script, that would be written.

    script: of a job that waits or runs; without it, of one that is complete, which settings that change the last digits
    alone do not outdate: their defaults change between releases.
    """
    rendered = plan.cluster.render(job) if script else None
    wanted = {} if rendered is None else {job.script_file: rendered.script, **rendered.more}
    try:
        if not all(path.read_text(encoding="utf-8") == text for path, text in wanted.items()):
            return False
        before = load_yaml(job.config_file)
    except (OSError, UnicodeDecodeError, UserError):
        return False
    schema = STAGES[job.stage]
    if not isinstance(before, dict):
        return False
    changed = differing_keys(_completed(before, schema), _completed(job.config, schema))
    return all(not script and is_below(key, LAST_DIGITS) for key in changed)


def _completed(config: Mapping[str, object], schema: type[DataclassInstance]) -> object:
    """Return a configuration with today's defaults for keys that it leaves out, as one of an earlier release may."""
    return complete(config, schema) if not check(config, schema, "") else config


def _is_outdated(job: Job) -> bool:
    """Whether something that the job reads was written, or put there with an older date, after what it has made."""
    try:
        made = min((path.stat().st_mtime for path in job.outputs), default=None)
        changed = (max(path.stat().st_mtime, path.stat().st_ctime) for path in job.inputs if path.exists())
        return made is not None and any(time > made for time in changed)
    except OSError:
        return True
