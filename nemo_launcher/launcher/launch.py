# SPDX-License-Identifier: Apache-2.0
"""The launcher from top to bottom: compose, check, prepare, write the job folders, launch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from nemo_launcher import exit_status
from nemo_launcher.clusters import job as job_folder
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.record import JobRecord, record_file, started
from nemo_launcher.clusters.script import syntax_error
from nemo_launcher.errors import Problem, UserError, environment_message
from nemo_launcher.files.locks import folder_lock
from nemo_launcher.files.owner import HOST, identity
from nemo_launcher.launcher.assumed import assume_templates
from nemo_launcher.launcher.automatic import settle
from nemo_launcher.launcher.checks import check_learnt
from nemo_launcher.launcher.claims import claim_existing
from nemo_launcher.launcher.compose import compose
from nemo_launcher.launcher.data_facts import describe_data
from nemo_launcher.launcher.estimate import describe, training_records
from nemo_launcher.launcher.from_hub import fetch_all
from nemo_launcher.launcher.masking import command_line
from nemo_launcher.launcher.outputs import check_runs
from nemo_launcher.launcher.plan import Plan, check_all_files, inputs_of, make_plan
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.report import in_runs, show_environment, show_problems, show_warnings
from nemo_launcher.launcher.source_facts import describe_source
from nemo_launcher.launcher.stage import Preparation
from nemo_launcher.launcher.stages import Learning
from nemo_launcher.launcher.standing import Step, check_unchanged, review
from nemo_launcher.launcher.sweep import check_places
from nemo_launcher.runtime.earlier_training import CHECKPOINTS, overwrite_problems
from nemo_launcher.training.checkpoint_header import SUFFIX, is_foreign

DRY_RUNS = "debug"
"""The subfolder for the files of a dry run beside a launched job."""


def main(
    tell: Callable[[Iterable[Problem]], object] = show_problems,
    planned: Callable[[list[Plan]], object] = lambda plans: None,
) -> int:
    """Run the launcher on the command line; return the exit status.

    It is USER_ERROR for mistakes, FAILED for a full or unwritable disk, and otherwise that of the first failed job.
    tell: receives the mistakes; planned: receives the plans before anything is written, and may raise UserError.
    """
    try:
        plans, probe = make_plans()
        planned(plans)
        if not all(plan.cluster.should_launch() for plan in plans):
            return 0
        steps = review(plans)
        check_replaced(plans, steps)
        warnings = try_out(plans, steps)
        return launch_all(plans, steps, probe, warnings)
    except UserError as error:
        tell(error.problems)
        return exit_status.USER_ERROR
    except KeyboardInterrupt:
        return exit_status.INTERRUPTED
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _discard_output()
        show_environment(error)
        return exit_status.FAILED


def _discard_output() -> int:
    """Discard further output after the reader closed the pipe, so that the interpreter's flush cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_status.READER_GONE


def make_plans() -> tuple[list[Plan], LaunchProbe]:
    """Check every configuration of the command line. Raises UserError with the mistakes of all of them."""
    probe = LaunchProbe()
    runs = compose()
    plans: list[Plan] = []
    found: dict[Problem, list[str]] = {}
    for run in runs:
        try:
            plans.append(make_plan(run, probe))
        except UserError as error:
            for problem in dict.fromkeys(error.problems):
                found.setdefault(problem, []).append(run.label)
    problems = [in_runs(problem, labels, len(runs)) for problem, labels in found.items()] + check_places(
        [plan.jobs for plan in plans]
    )
    problems += check_runs([(plan.label, plan.stages) for plan in plans]) if not problems else []
    if problems:
        raise UserError(problems)
    return plans, probe


def check_replaced(plans: list[Plan], steps: list[list[Step]]) -> None:
    """Raise UserError when a training to be launched would replace results of an earlier one."""
    problems: list[Problem] = []
    for plan, run in zip(plans, steps, strict=True):
        launched = {step.job.stage for step in run if not step.skipped}
        for stage in plan.stages:
            if isinstance(stage, Learning) and stage.name in launched:
                problems += overwrite_problems(stage.section, stage.key) or _not_resumable(stage)
    if problems:
        raise UserError(dict.fromkeys(problems))


def _not_resumable(stage: Learning) -> list[Problem]:
    """Return a problem if the folder has only checkpoints of release 0.1.0, which cannot be resumed."""
    folder = Path(stage.section.exp_manager.explicit_log_dir) / CHECKPOINTS
    checkpoints = sorted(folder.glob(f"*{SUFFIX}"))
    if not checkpoints or not all(map(is_foreign, checkpoints)):
        return []
    what = f"{folder} has checkpoints of another release, such as {checkpoints[-1].name}, which cannot be resumed"
    adapter = stage.section.model.nemo_path
    start = f" {stage.key('model.restore_path')}={adapter} starts from its adapter" if Path(adapter).is_file() else ""
    fix = f"finish it with that release, or use another folder: {stage.key('run.results_dir')}=/another/folder;{start}"
    return [Problem(stage.key("run.results_dir"), what, fix.removesuffix(";"))]


def try_out(plans: list[Plan], steps: list[list[Step]]) -> list[Problem]:
    """Test the scripts of all jobs before any folder is written or any job is launched.

    Returns warnings. Raises UserError for jobs that cannot be launched.
    """
    rendered = [
        plan.cluster.render(step.job)
        for plan, run in zip(plans, steps, strict=True)
        for step in run
        if not step.skipped
    ]
    problems = []
    for one in rendered:
        error = syntax_error(one.script)
        if error:
            problems.append(
                Problem(one.job.stage, f"its script has a syntax error: {error}", "simplify the quoted text in it")
            )
    refused, warnings = plans[0].cluster.try_out(rendered) if plans and not problems else ([], [])
    if problems or refused:
        raise UserError(dict.fromkeys([*problems, *refused]))
    return warnings


def launch_all(plans: list[Plan], steps: list[list[Step]], probe: LaunchProbe, warnings: list[Problem]) -> int:
    """Prepare data once, then launch the plans in order until one fails."""
    show_warnings(dict.fromkeys([*(warning for plan in plans for warning in plan.warnings), *warnings]))
    preparations: dict[Preparation, None] = {}
    for plan, run in zip(plans, steps, strict=True):
        if not plan.debug and not all(step.skipped for step in run):
            preparations.update(dict.fromkeys(plan.preparations))
    for preparation in preparations:
        prepare(preparation)
    fetch_from_hub(plans, steps, probe)
    done: set[Path] = set()
    for number, (plan, run) in enumerate(zip(plans, steps, strict=True), start=1):
        if len(plans) > 1:
            print(f"run {number} of {len(plans)}: {plan.label}", flush=True)
        status = execute(plan, run, probe, done)
        if status != 0:
            if number < len(plans):
                print(f"not launched: the remaining {len(plans) - number} runs", file=sys.stderr)
            return status
    return 0


def fetch_from_hub(plans: list[Plan], steps: list[list[Step]], probe: LaunchProbe) -> None:
    """Fetch what jobs to be launched take from the hub, and check it as the other files were checked before."""
    for plan, run in zip(plans, steps, strict=True):
        chosen = {step.job.stage for step in run if not step.skipped and not plan.debug}
        stages = [stage for stage in plan.stages if stage.name in chosen]
        new = fetch_all((one for stage in stages for one in stage.from_hub), _report)
        learning = [stage for stage in stages if isinstance(stage, Learning) and new]
        for stage in stages if new else ():
            stage.pin()
        for stage in learning:
            assume_templates(stage)
        mode = plan.cluster.settings.preflight
        problems = check_all_files(plan.stages, probe) if new and mode != "off" else []
        problems += [problem for stage in learning for problem in check_learnt(stage)]
        if problems and mode == "error":
            raise UserError(problems)
        show_warnings(problems)


def execute(plan: Plan, run: list[Step], probe: LaunchProbe, done: set[Path]) -> int:
    """Write the job folders and launch the jobs; with debug, only write the folders.

    done: the records of jobs launched by earlier runs of a sweep; runs may share a stage.
    """
    launched = "submitted above" if plan.cluster.queues else "done above"
    run = [replace(step, skipped=launched) if record_file(step.job) in done else step for step in run]
    for step in run:
        if step.skipped:
            print(f"{step.job.stage}: skipped: {step.skipped}", flush=True)
    run = [with_numbers(step, plan, probe) for step in run]
    chosen = [step for step in run if not step.skipped]
    stages = {step.job.stage for step in chosen}
    for stage in (stage for stage in plan.stages if stage.name in stages):
        told = [f"{stage.name}: {line}" for line in [*(one.described() for one in stage.from_hub), *stage.assumed]]
        told += describe_source(stage)
        for line in filter(None, [*told, describe(stage, probe), *describe_data(stage, plan.stages, probe)]):
            print(line, flush=True)
    if plan.debug:
        chosen = [replace(step, job=beside_launched(step.job)) for step in chosen]
    records = write_folders(plan, chosen)
    if plan.debug:
        for step in chosen:
            print(f"{step.job.stage}: debug, not launched; script {step.job.script_file}")
        return 0
    done.update(record.record_file for record in records)
    return plan.cluster.launch(records) if records else 0


def with_numbers(step: Step, plan: Plan, probe: LaunchProbe) -> Step:
    """Return a step with the facts of data that was prepared after the checks: numbers for `auto`, commits."""
    stage = next(stage for stage in plan.stages if stage.name == step.job.stage)
    if step.skipped:
        return step
    stage.pin()
    assume_templates(stage)
    settle(stage, training_records(stage, probe))
    if step.job.config == stage.config:
        return step
    return replace(step, job=replace(step.job, config=stage.config, inputs=inputs_of(stage)))


def beside_launched(job: Job) -> Job:
    """Return the job with the folder for a dry run's files: a subfolder if a job was launched from its own.

    The files of a launched job say what was run: later launches and `rerun` read them.
    """
    return replace(job, folder=job.folder / DRY_RUNS) if record_file(job).exists() else job


def write_folders(plan: Plan, steps: list[Step]) -> list[JobRecord]:
    """Write the folders and records of jobs to be launched, with all folders locked; return the records."""
    jobs = [step.job for step in steps]
    stages = {stage.name: stage for stage in plan.stages}
    with contextlib.ExitStack() as locks:
        for job in jobs:
            locks.enter_context(folder_lock(job.folder, "launch"))
        check_unchanged(steps)
        shared = plan.cluster.render_chain(jobs)
        for number, job in enumerate(jobs):
            rendered = plan.cluster.render(job)
            more = rendered.more | (shared if number == 0 else {})
            try:
                job_folder.write(job, rendered.script, more, command_line())
                claim_existing(stages[job.stage])
            except OSError as error:
                raise UserError(Problem(str(job.folder), _why_not_written(error))) from error
        if plan.debug:
            return []
        me = identity(os.getpid())
        records = plan.cluster.records(jobs, plan.jobs)
        return [started(record, None, [], host=HOST, process=me) for record in records]


def _why_not_written(error: OSError) -> str:
    return environment_message(error) or f"cannot be written: {error.strerror}"


def prepare(preparation: Preparation) -> None:
    """Prepare a dataset unless it is already prepared. Raises UserError when its sources are unavailable."""
    from nemo_launcher.data.preparation import builder_of

    builder = builder_of(preparation.dataset)
    if not builder.is_prepared(preparation.source_dir, preparation.output_dir):
        builder.prepare(preparation.source_dir, preparation.output_dir, download=True, report=_report)


def _report(text: object) -> None:
    print(text, file=sys.stdout, flush=True)
