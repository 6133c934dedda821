# SPDX-License-Identifier: Apache-2.0
"""What all launchers share: how a job script is put together, and how a chain of jobs is launched."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nemo_launcher.config.constraints import character_problem
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.jobs.job import Job
from nemo_launcher.jobs.record import JobRecord, record_file, record_of

EDGES = ("afterok", "afterany")
"""How a stage follows the one before: only if that has worked, or whatever became of it."""


@dataclass(frozen=True)
class Settings:
    """What the jobs of a run share: the top level of the configuration."""

    launcher_scripts: Path
    data_dir: Path
    base_results_dir: Path
    container: str | None
    container_mounts: list[str]
    env_vars: dict[str, str]
    wandb_key_file: str | None
    wandb_key_name: str | None
    bcp_no_redirect: bool
    cluster: dict[str, Any]
    dependency: str
    debug: bool
    preflight: str = "error"


class Launcher(ABC):
    """Writes the script of a job for one kind of cluster, and starts or submits a chain of them."""

    cluster_type: ClassVar[str]
    queues: ClassVar[bool] = False
    """Whether jobs are handed over to a scheduler, and the launcher ends before they do."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def problems(self, jobs: list[Job]) -> list[Problem]:
        """Return what keeps these jobs from running on this kind of cluster."""
        return []

    def warnings(self, jobs: list[Job]) -> list[Problem]:
        """Return what these jobs may run into on this kind of cluster, but need not."""
        return []

    def is_in_charge(self) -> bool:
        """Whether it is for this process to launch: of a job's replicas only one may."""
        return True

    def script(self, job: Job) -> str:
        """Return the job script: header, exports, the lines that start the command; it stops at the first failure."""
        refuse_control_characters([self.settings, job])
        lines = ["#!/bin/bash", *self.header(job), "", *_keep_exit_status(job, self.at_end())]
        lines += [*self.at_start(), "set -euo pipefail", ""]
        return "\n".join([*lines, *self.exports(), *self.body(job)]) + "\n"

    def header(self, job: Job) -> list[str]:
        """Lines for the cluster's scheduler."""
        return []

    def at_start(self) -> list[str]:
        """Lines that tell of the start of the job in its log."""
        return []

    def at_end(self) -> str:
        """A command that tells of its end; $status is the exit status."""
        return ""

    def exports(self) -> list[str]:
        """The environment variables of the configuration."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.settings.env_vars.items()]
        return [*lines, ""] if lines else []

    @abstractmethod
    def body(self, job: Job) -> list[str]:
        """The lines that run the job's command."""

    def try_scripts(self, scripts: list[tuple[str, str]]) -> tuple[list[Problem], list[Problem]]:
        """Return what keeps scripts, each with the name of its stage, from being launched, and what may do so."""
        return [], []

    def launch(self, records: list[JobRecord]) -> int:
        """Run or submit the jobs of a chain in order, each one as its edge says; return the exit status."""
        return self.start(records)

    @classmethod
    @abstractmethod
    def start(cls, records: list[JobRecord]) -> int:
        """Run or submit the scripts of jobs whose folders are written, in order; return the exit status."""

    def records(self, jobs: list[Job], chain: list[Job]) -> list[JobRecord]:
        """Return the records of jobs of a chain, which hold how each follows the one before."""
        files = [record_file(job) for job in chain]
        links = dict(zip(files, zip([None, *files[:-1]], [*files[1:], None], strict=True), strict=True))
        records = []
        for job in jobs:
            before, after = links[record_file(job)]
            edge = self.edge(job) if before is not None else None
            own = job.dependency if job.dependency not in EDGES else None
            more = self.record_fields(job, chain)
            records.append(
                record_of(job, self.cluster_type, before=before, after=after, edge=edge, dependency=own, **more)
            )
        return records

    def record_fields(self, job: Job, chain: list[Job]) -> dict[str, Any]:
        """What else this kind of cluster needs to start the job again."""
        return {}

    def edge(self, job: Job) -> str:
        """How `job` follows the stage before it: afterok, afterany or singleton."""
        return job.dependency if job.dependency in EDGES else self.settings.dependency

    def interpreter(self) -> str:
        """The Python that runs the job: the one that runs the launcher, so that both see the same packages."""
        return sys.executable

    def read_wandb_key(self, job: Job) -> list[str]:
        """Lines that read the Weights & Biases key inside the job, so that no file of ours holds it."""
        if not job.wants_wandb or self.settings.wandb_key_file is None:
            return []
        path = shlex.quote(str(Path(self.settings.wandb_key_file).absolute()))
        return [f'WANDB_API_KEY="$(head -n 1 {path})"', "export WANDB_API_KEY"]


def refuse_control_characters(value: Any, where: str = "job script") -> None:
    """Raise UserError when any text that a script is made of holds a control character.

    The schema has refused it before: this holds for values that come another way, and for keys yet to be written.
    """
    if isinstance(value, (str, Path)):
        what = character_problem(str(value))
        if what is not None:
            raise UserError(Problem(where, what, "no script is written; leave it out"))
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_control_characters(str(key), where)
            refuse_control_characters(item, f"{where}: {key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_control_characters(item, where)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.name == "cluster" and isinstance(item, dict):  # setup is lines of the script
                item = {key: setting for key, setting in item.items() if key != "setup"}
            if field.name not in _NOT_IN_SCRIPTS:
                refuse_control_characters(item, field.name)


_NOT_IN_SCRIPTS = ("config",)
"""Fields of a job that go into its YAML file alone."""


def _keep_exit_status(job: Job, at_end: str) -> list[str]:
    """Lines by which the script leaves its exit status for `nemo-launcher status`, whoever is there when it ends.

    A signal that the whole group gets must not end the script before the processes that save because of it.
    """
    keep = 'status="$?"; echo "$status" > "$exit_status_file"'
    return [
        f"exit_status_file={shlex.quote(str(job.exit_status_file))}",
        'rm -f "$exit_status_file"',
        f"trap {shlex.quote('; '.join(filter(None, [keep, at_end])))} EXIT",
        "trap : HUP INT TERM USR1",
        "",
    ]
