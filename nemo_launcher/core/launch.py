"""The launcher, top to bottom: compose, check, prepare, write the job folders, launch."""

from __future__ import annotations

import os
import sys

from nemo_launcher.core import job as job_folder
from nemo_launcher.core.compose import compose
from nemo_launcher.core.estimate import describe
from nemo_launcher.core.preflight import Plan, make_plan
from nemo_launcher.core.report import in_runs, show_problems, show_warnings
from nemo_launcher.core.stages import Preparation
from nemo_launcher.core.surroundings import Surroundings
from nemo_launcher.core.sweep import check_places
from nemo_launcher.errors import Problem, UserError


def main() -> int:
    """Do what the command line asks for; return the exit status: 2 for a user's mistake, else the first failure."""
    try:
        return launch_all(*make_plans())
    except UserError as error:
        show_problems(error.problems)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has gone; the interpreter's own flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_plans() -> tuple[list[Plan], Surroundings]:
    """Check every configuration that the command line composes to. Raises UserError with the mistakes of all."""
    seen = Surroundings()
    runs = compose()
    plans: list[Plan] = []
    found: dict[Problem, list[str]] = {}
    for run in runs:
        try:
            plans.append(make_plan(run, seen))
        except UserError as error:
            for problem in dict.fromkeys(error.problems):
                found.setdefault(problem, []).append(run.label)
    problems = [in_runs(problem, labels, len(runs)) for problem, labels in found.items()] + check_places(plans)
    if problems:
        raise UserError(problems)
    return plans, seen


def launch_all(plans: list[Plan], seen: Surroundings) -> int:
    """Prepare data once, then launch one plan after the other; the first that fails ends it."""
    show_warnings(dict.fromkeys(warning for plan in plans for warning in plan.warnings))
    if not all(plan.launcher.is_in_charge() for plan in plans):
        return 0
    for preparation in dict.fromkeys(p for plan in plans if not plan.debug for p in plan.preparations):
        prepare(preparation)
    for number, plan in enumerate(plans, start=1):
        if len(plans) > 1:
            print(f"run {number} of {len(plans)}: {plan.label}", flush=True)
        status = carry_out(plan, seen)
        if status != 0:
            if number < len(plans):
                print(f"not launched: the {len(plans) - number} runs after it", file=sys.stderr)
            return status
    return 0


def carry_out(plan: Plan, seen: Surroundings) -> int:
    """Write the job folders and launch; with debug only the job folders are written."""
    for line in filter(None, (describe(stage, seen) for stage in plan.stages)):
        print(line, flush=True)
    for job in plan.jobs:
        try:
            job_folder.write(job, plan.launcher.script(job))
        except OSError as error:
            raise UserError(Problem(str(job.folder), f"cannot be written: {error.strerror}")) from error
    if plan.debug:
        for job in plan.jobs:
            print(f"{job.stage}: debug, not launched; script {job.script_file}")
        return 0
    return plan.launcher.launch(plan.jobs)


def prepare(preparation: Preparation) -> None:
    """Prepare SQuAD unless that is done already. Raises UserError when there are no sources to be had."""
    from nemo_launcher.data.squad import is_prepared
    from nemo_launcher.data.squad import prepare as prepare_squad

    if not is_prepared(preparation.source_dir, preparation.output_dir):
        prepare_squad(preparation.source_dir, preparation.output_dir, download=True, report=_report)


def _report(text: object) -> None:
    print(text, file=sys.stdout, flush=True)
