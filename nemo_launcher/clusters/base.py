# SPDX-License-Identifier: Apache-2.0
"""The interface of a cluster type: detection, checks, scripts, submission, states, cancelling and rerunning.

An instance has the settings of one run; it checks jobs and writes their scripts. Everything after the launch (states,
cancel, start, logs) needs only the job records and is done by class methods.
"""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from nemo_launcher.clusters.exports import own_exports
from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.record import JobRecord, record_file, record_of
from nemo_launcher.clusters.script import keep_exit_status, refuse_control_characters
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.errors import Problem

EDGES = ("afterok", "afterany")
"""How a stage depends on the previous one: it starts only after a success, or after any end."""
_ENDS = {"afterany": "ended"}


@dataclass(frozen=True)
class Settings:
    """The settings that all jobs of a run share, from the top level of the configuration."""

    launcher_scripts: Path
    """The folder with the scripts that jobs run."""
    data_dir: Path
    """The folder for data."""
    base_results_dir: Path
    """The folder for job folders and results."""
    container: str | None
    """The container image; None to run without a container."""
    container_mounts: list[str]
    """Paths to mount into the container."""
    env_vars: dict[str, str]
    """Environment variables of every job."""
    wandb_key_file: str | None
    """The file that holds the API key of Weights & Biases."""
    wandb_key_name: str | None
    """The name of the Base Command Platform secret that holds this key."""
    bcp_no_redirect: bool
    """Base Command Platform only: whether output stays on the terminal."""
    cluster: Mapping[str, object]
    """The `cluster` section, already checked against the cluster's schema."""
    dependency: str
    """How a stage depends on the previous one: afterok, afterany or singleton."""
    debug: bool
    """Whether scripts are only written and nothing is started."""
    preflight: str = "error"
    """The effect of a failed check: error, warn or off."""
    container_runtime: str = "pyxis"
    """Slurm only: what runs the image, pyxis or apptainer."""


@dataclass(frozen=True)
class Rendered:
    """The files that are written for a job besides its configuration."""

    job: Job
    """The job."""
    script: str
    """The text of its script."""
    more: dict[Path, str] = field(default_factory=dict)
    """Further files and their text."""


@dataclass(frozen=True)
class Answers:
    """A cluster's answer about some of its jobs."""

    found: list[list[JobStatus]]
    """For each record: earlier jobs from its folder that are still active, then the job itself."""
    silent: bool = False
    """Whether the scheduler was asked and did not answer."""


class Site:
    """The facts of one actual cluster, queried once for all runs of a sweep."""

    def problems(self, settings: Settings, jobs: Sequence[Job]) -> list[Problem]:
        """Return what prevents valid jobs from running on this particular cluster."""
        return []


class Cluster(ABC):
    """One kind of cluster."""

    cluster_type: ClassVar[str]
    """The value of the key `cluster_type`."""
    title: ClassVar[str]
    """The name that messages use."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other names for it, in lower case; they lead to a suggestion but are not accepted."""
    section: ClassVar[type | None] = None
    """The dataclass of the `cluster` section; None for a cluster without options. Its values are in
    conf/cluster/<cluster_type>.yaml."""
    keys: ClassVar[tuple[str, ...]] = ()
    """Top-level keys, run.time_limit and run.dependency if they apply to this cluster; a key that any cluster lists
    applies to no other."""
    queues: ClassVar[bool] = False
    """Whether jobs are submitted to a scheduler, so that the launcher ends before they do."""
    asks_with: ClassVar[str] = ""
    """The command that shows the states of jobs, for messages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    @abstractmethod
    def detect(cls) -> bool:
        """Return whether this machine belongs to such a cluster; used when `cluster_type` is null."""

    @classmethod
    def suggested_option(cls, name: str) -> str | None:
        """Return how to set an option without a key of its own in the `cluster` section; None if there is none."""
        return None

    # --- before the launch --------------------------------------------------------------------------------------

    def problems(self, jobs: list[Job]) -> list[Problem]:
        """Return what prevents these jobs from running on this kind of cluster."""
        return []

    def warnings(self, jobs: list[Job]) -> list[Problem]:
        """Return what may go wrong with these jobs on this kind of cluster."""
        return []

    @classmethod
    def site(cls) -> Site:
        """Return the object that checks jobs against this particular cluster."""
        return Site()

    def should_launch(self) -> bool:
        """Return whether this process should launch; only one replica of a job may."""
        return True

    # --- the job's files ----------------------------------------------------------------------------------------

    def render(self, job: Job) -> Rendered:
        """Return all files of a job. Raises UserError for text that a script must not contain."""
        return Rendered(job, self.script(job))

    def render_chain(self, jobs: list[Job]) -> dict[Path, str]:
        """Return the files that the jobs of one launch share: {path: text}."""
        return {}

    def script(self, job: Job) -> str:
        """Return the job script: header, exports, and the lines that run the command. It stops at the first failure."""
        refuse_control_characters([self.settings, job])
        lines = ["#!/bin/bash", *self.header(job), *self.by_hand(job), "", *keep_exit_status(job, self.at_end())]
        lines += [*self.at_start(job), "set -euo pipefail", ""]
        exports = [*self.exports(job).values(), ""] if self.exports(job) else []
        return "\n".join([*lines, *exports, *self.body(job)]) + "\n"

    def header(self, job: Job) -> list[str]:
        """Return the first lines of the script, such as those for a scheduler."""
        return []

    def at_start(self, job: Job) -> list[str]:
        """Return lines that log the start of the job."""
        return []

    def at_end(self) -> str:
        """Return a shell command that logs the end of the job; $status is the exit status."""
        return ""

    def by_hand(self, job: Job) -> list[str]:
        """Return comments on what comes before this script, if it is only written: nothing but them says the order."""
        if job.previous is None or not self.settings.debug:
            return []
        return [f"# by hand: run this script when {job.previous} has {_ENDS.get(self.edge(job), 'succeeded')}"]

    def exports(self, job: Job) -> dict[str, str]:
        """Return the line that exports each environment variable of a job; the configuration's replace our own."""
        given = self.settings.env_vars.items()
        return own_exports(job) | {name: f"export {name}={shlex.quote(value)}" for name, value in given}

    @abstractmethod
    def body(self, job: Job) -> list[str]:
        """Return the lines that run the job's command."""

    def try_out(self, rendered: Sequence[Rendered]) -> tuple[list[Problem], list[Problem]]:
        """Test the jobs before anything is written; return the problems and the warnings."""
        return [], []

    def interpreter(self) -> str:
        """Return the job's Python: by default the launcher's, so that both have the same packages."""
        return sys.executable

    def read_wandb_key(self, job: Job) -> list[str]:
        """Return lines that read the Weights & Biases key inside the job, so that the script does not contain it."""
        if not job.wants_wandb or self.settings.wandb_key_file is None:
            return []
        path = shlex.quote(str(Path(self.settings.wandb_key_file).absolute()))
        return [f'WANDB_API_KEY="$(head -n 1 {path})"', "export WANDB_API_KEY"]

    # --- the launch ---------------------------------------------------------------------------------------------

    def records(self, jobs: list[Job], chain: list[Job]) -> list[JobRecord]:
        """Return the records of a chain's jobs, each with its dependency on the previous stage."""
        files = [record_file(job) for job in chain]
        links = dict(zip(files, zip([None, *files[:-1]], [*files[1:], None], strict=True), strict=True))
        records = []
        for job in jobs:
            before, after = links[record_file(job)]
            edge = self.edge(job) if before is not None else None
            own = job.dependency if job.dependency not in EDGES else None
            record = record_of(job, self.cluster_type, before=before, after=after, edge=edge, dependency=own)
            records.append(self.completed(record, job, chain))
        return records

    def completed(self, record: JobRecord, job: Job, chain: list[Job]) -> JobRecord:
        """Return the record with the fields that this kind of cluster adds."""
        return record

    def edge(self, job: Job) -> str:
        """Return how `job` depends on the previous stage: afterok, afterany or singleton."""
        return job.dependency if job.dependency in EDGES else self.settings.dependency

    def launch(self, records: list[JobRecord]) -> int:
        """Run or submit the jobs of a chain in order, subject to their dependencies; return the exit status."""
        return self.start(records)

    @classmethod
    @abstractmethod
    def start(cls, records: list[JobRecord]) -> int:
        """Run or submit the scripts in existing job folders, in order; return the exit status."""

    # --- after the launch ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def states(cls, records: Sequence[JobRecord]) -> Answers:
        """Return the states of jobs of this cluster; none of the records is damaged."""

    @classmethod
    @abstractmethod
    def cancel(cls, found: Sequence[JobStatus]) -> bool:
        """End jobs that wait or run, mark (local.mark_cancelled) and report each; return whether all ended."""

    @classmethod
    def logs(cls, record: JobRecord, job_id: str) -> list[Path]:
        """Return the log files of the job with this id."""
        return [record.log_file(job_id)]

    @classmethod
    def remote_logs(cls, record: JobRecord, num_lines: int) -> str | None:
        """Return the end of a log that only the cluster has; None if there is none."""
        return None

    @classmethod
    def for_rerun(cls, record: JobRecord) -> JobRecord:
        """Return the record to use when the job is started again."""
        return record

    @classmethod
    def is_job_id(cls, text: str) -> bool:
        """Return whether a text has the form of this cluster's job ids."""
        return text.isascii() and text.isdigit() and len(text) <= 18
