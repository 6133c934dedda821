# SPDX-License-Identifier: Apache-2.0
"""Find the jobs of a launch that are finished or active, so that a repeated command continues where it stopped."""

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
    """Why it is not launched; empty if it is."""
    record: JobRecord | None
    """Its record when it was reviewed; None if there was none."""


def review(plans: Sequence[Plan]) -> list[list[Step]]:
    """Return the steps of each plan, skipping jobs that are active or complete with the same configuration.

    A stage after one that is launched or active is launched even if it is complete. Raises UserError for a folder
    whose job is, or may be, active with another configuration.
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
    """Return a problem for each output that an active job in another folder of base_results_dir will write.

    Existing files are checked elsewhere; this covers the outputs of queued jobs, which do not exist yet.
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
            what = f"{output} will be written by {record.title} in {record.folder}, which is {status.state}"
            fix = "choose another path, or wait until that job ends"
            problems.append(Problem(writers[os.path.realpath(output)], what, fix))
    return problems


def check_unchanged(steps: Iterable[Step]) -> None:
    """Raise UserError if another launcher has started a job since the review. Call it with the folders locked."""
    for step in steps:
        now = read(record_file(step.job))
        if now is not None and not now.damage and (step.record is None or _start(now) != _start(step.record)):
            what = f"another launcher has just started {now.title} there"
            raise UserError(Problem(str(step.job.folder), what, "check it with nemo-launcher status"))


def _start(record: JobRecord) -> tuple[str | None, float]:
    return record.job_id, record.submitted


def _standing(plan: Plan, job: Job, known: list[JobStatus], *, is_behind: bool) -> tuple[str, Problem | None]:
    """Return the reason for skipping a job, or the problem with launching it."""
    folder = shlex.quote(str(job.folder))
    for status in known:
        queued = status.record.cluster_type == plan.cluster.cluster_type and plan.cluster.queues
        what = f"{status.record.title} is {status.state}"
        is_same = queued and _is_same(plan, job, script=True)
        if plan.debug and is_same:
            continue  # the files to write already exist
        if status.may_be_active:
            asked = CLUSTERS[status.record.cluster_type]
            what = f"{asked.title} did not answer: whether {status.record.title} waits or runs there is unknown"
            return "", _problem(job, what, f"try again when {asked.asks_with} answers")
        if status.is_active and is_same:
            return what, None
        if status.is_active:
            more = " there with another script or configuration" if queued else f" in {job.folder}"
            return "", _problem(job, what + more, f"wait until it ends, or: nemo-launcher cancel {folder}")
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
    """Return whether the folder has the configuration, and with `script` the script, that would be written.

    script: set for a job that waits or runs. For a complete job, settings that only affect the last digits of results
    are ignored, since their defaults change between releases.
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
    """Return a configuration with current defaults for absent keys, which one from an earlier release may lack."""
    return complete(config, schema) if not check(config, schema, "") else config


def _is_outdated(job: Job) -> bool:
    """Return whether an input of the job is newer than its outputs, by modification or by change time."""
    try:
        made = min((path.stat().st_mtime for path in job.outputs), default=None)
        changed = (max(path.stat().st_mtime, path.stat().st_ctime) for path in job.inputs if path.exists())
        return made is not None and any(time > made for time in changed)
    except OSError:
        return True
