# SPDX-License-Identifier: Apache-2.0
"""The process behind `train`: the launcher, which also writes its jobs or its mistakes to a file.

python -m nemo_launcher.api.launch_process REPORT.json OVERRIDE...
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path

from nemo_launcher import places
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.record import read, record_file
from nemo_launcher.clusters.state import exit_status
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.launcher import launch
from nemo_launcher.launcher.plan import Plan
from nemo_launcher.launcher.report import shown_problems
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning
from nemo_launcher.runtime.progress_file import SUMMARY_NAME


def main() -> int:
    """Run the launcher; return its exit status."""
    report = _Report(Path(sys.argv.pop(1)))
    if not places.INSTALLED:
        sys.argv[0] = str(places.CONF.parent / "main.py")  # the command line that a job folder records
    status = launch.main(tell=report.problems, planned=report.planned)
    report.write_failed()
    return status


class _Report:
    """What `train` must know of the launch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: list[Job] = []
        self._values: dict[str, object] = {}

    def problems(self, problems: Iterable[Problem]) -> None:
        """Write the mistakes, as the launcher shows them."""
        self._write(problems=[dataclasses.astuple(problem) for problem in shown_problems(problems)])

    def planned(self, plans: list[Plan]) -> None:
        """Write the jobs. Raises UserError unless they are one run with a training on this machine."""
        plan = plans[0] if len(plans) == 1 else None
        if plan is None:
            raise UserError(Problem("settings", "are not one run", "call train once for each run of a sweep"))
        problems = []
        if plan.cluster.queues:
            fix = f"leave it out, or launch from a shell: {places.LAUNCH}"
            problems.append(Problem("cluster_type", "train runs on this machine and waits", fix))
        if plan.debug:
            problems.append(Problem("debug", "is a dry run, which trains nothing", f"use a shell: {places.LAUNCH}"))
        if not any(isinstance(stage, Learning) for stage in plan.stages):
            problems.append(Problem("stages", "have no training", "stages=[adapter_learning]"))
        if problems:
            raise UserError(problems)
        stages = {stage.name: stage for stage in plan.stages}
        self._jobs = plan.jobs
        self._write(jobs=[_of_job(job, stages[job.stage]) for job in plan.jobs])

    def write_failed(self) -> None:
        """Write which job has failed, if one has."""
        for job in self._jobs:
            record = read(record_file(job))
            if record is not None and exit_status(record):
                self._write(failed={"stage": job.stage, "log": str(record.logs[-1]) if record.logs else None})
                return

    def _write(self, **values: object) -> None:
        self._values |= values
        write_json(self._path, self._values)


def _of_job(job: Job, stage: Stage) -> dict[str, object]:
    found: dict[str, object] = {"stage": job.stage, "outputs": [str(path) for path in job.outputs], "adapter": None}
    if isinstance(stage, Learning):
        section = stage.section
        found["adapter"] = str(section.model.nemo_path)
        found["summary"] = str(Path(section.exp_manager.explicit_log_dir) / SUMMARY_NAME)
    return found


if __name__ == "__main__":
    sys.exit(main())
