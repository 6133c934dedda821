"""The launcher, top to bottom: compose, check, prepare, write the job folders, launch."""

from __future__ import annotations

import os
import sys

from nemo_launcher.core import job as job_folder
from nemo_launcher.core.compose import compose
from nemo_launcher.core.preflight import Plan, make_plan
from nemo_launcher.core.report import show_problems
from nemo_launcher.core.stages import Preparation
from nemo_launcher.errors import Problem, UserError


def main() -> int:
    """Do what the command line asks for; return the exit status: 2 for a user's mistake, else the first failure."""
    try:
        plans = make_plans()
        for plan in plans:
            status = carry_out(plan)
            if status != 0:
                return status
    except UserError as error:
        show_problems(error.problems)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has gone; the interpreter's own flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def make_plans() -> list[Plan]:
    """Check every configuration that the command line composes to. Raises UserError with the mistakes of all."""
    plans, problems = [], []
    for composed in compose():
        try:
            plans.append(make_plan(composed))
        except UserError as error:
            problems += error.problems
    scripts = [job.script_file for plan in plans for job in plan.jobs]
    for script in dict.fromkeys(script for script in scripts if scripts.count(script) > 1):
        fix = "let what is varied be part of run.results_dir, such as run.model_train_name"
        problems.append(Problem(str(script), "several runs of this sweep would write it", fix))
    if problems:
        raise UserError(dict.fromkeys(problems))
    return plans


def carry_out(plan: Plan) -> int:
    """Prepare data, write the job folders and launch; with debug only the job folders are written."""
    if not plan.debug:
        for preparation in plan.preparations:
            prepare(preparation)
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
