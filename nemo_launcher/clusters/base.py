# SPDX-License-Identifier: Apache-2.0
"""The interface of a kind of cluster: from finding out that it is there to running one of its jobs again.

An instance belongs to a run, whose settings it has: it checks jobs and writes their scripts. What happens to jobs after
their launch (states, cancel, start, logs) is told from their records alone, by class methods.
"""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from nemo_launcher.clusters.job import Job
from nemo_launcher.clusters.record import JobRecord, record_file, record_of
from nemo_launcher.clusters.script import keep_exit_status, refuse_control_characters
from nemo_launcher.clusters.state import JobStatus
from nemo_launcher.errors import Problem

EDGES = ("afterok", "afterany")
"""How a stage follows the one before: only if that has worked, or whatever became of it."""


@dataclass(frozen=True)
class Settings:
    """What the jobs of a run share: the top level of the configuration."""

    launcher_scripts: Path
    """The folder with the scripts that jobs run."""
    data_dir: Path
    """The folder for data."""
    base_results_dir: Path
    """The folder for job folders and results."""
    container: str | None
    """The container image; None: none."""
    container_mounts: list[str]
    """Paths to mount into the container."""
    env_vars: dict[str, str]
    """Environment variables of every job."""
    wandb_key_file: str | None
    """A file that holds the API key of Weights & Biases."""
    wandb_key_name: str | None
    """The name of Base Command Platform's secret that holds it."""
    bcp_no_redirect: bool
    """Base Command Platform only: whether output stays on the terminal."""
    cluster: Mapping[str, object]
    """The `cluster` section, which the schema of the cluster has accepted."""
    dependency: str
    """How a stage follows the one before: afterok, afterany or singleton."""
    debug: bool
    """Whether scripts are written and nothing is started."""
    preflight: str = "error"
    """What a failed check does: error, warn or off."""


@dataclass(frozen=True)
class Rendered:
    """What is written for a job beside its configuration."""

    job: Job
    """The job."""
    script: str
    """The text of its script."""
    more: dict[Path, str] = field(default_factory=dict)
    """Further files and their text."""


@dataclass(frozen=True)
class Answers:
    """What a cluster says of some of its jobs."""

    found: list[list[JobStatus]]
    """For each record: jobs started from its folder before that are still active, then the job itself."""
    silent: bool = False
    """Whether the scheduler was asked and did not answer."""


class Site:
    """What a cluster tells of itself when it is asked: looked at once, for all runs of a sweep."""

    def problems(self, settings: Settings, jobs: Sequence[Job]) -> list[Problem]:
        """Return what keeps sound jobs from running on this very cluster."""
        return []


class Cluster(ABC):
    """One kind of cluster."""

    cluster_type: ClassVar[str]
    """The value of the key `cluster_type`."""
    title: ClassVar[str]
    """What users call it."""
    words: ClassVar[tuple[str, ...]] = ()
    """What else it is called, in small letters; suggested, never accepted."""
    section: ClassVar[type | None] = None
    """The dataclass of the `cluster` section; None for a cluster without options. Its values are in
    conf/cluster/<cluster_type>.yaml."""
    keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the top level, and run.time_limit and run.dependency, that count on no cluster but those that list
    them."""
    queues: ClassVar[bool] = False
    """Jobs are handed over to a scheduler, and the launcher ends before they do."""
    asks_with: ClassVar[str] = ""
    """The command that tells the states of jobs, for messages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    @abstractmethod
    def detect(cls) -> bool:
        """Whether this machine belongs to such a cluster, for a `cluster_type` of null."""

    # --- before the launch --------------------------------------------------------------------------------------

    def problems(self, jobs: list[Job]) -> list[Problem]:
        """Return what keeps these jobs from running on this kind of cluster."""
        return []

    def warnings(self, jobs: list[Job]) -> list[Problem]:
        """Return what these jobs may run into on this kind of cluster, but need not."""
        return []

    @classmethod
    def site(cls) -> Site:
        """Return the questions to this very cluster."""
        return Site()

    def should_launch(self) -> bool:
        """Whether this process should launch: of a job's replicas only one may."""
        return True

    # --- the job's files ----------------------------------------------------------------------------------------

    def render(self, job: Job) -> Rendered:
        """Return everything that is written for a job. Raises UserError for text that no script may hold."""
        return Rendered(job, self.script(job))

    def render_chain(self, jobs: list[Job]) -> dict[Path, str]:
        """Return the files, with their text, that the jobs of one launch share."""
        return {}

    def script(self, job: Job) -> str:
        """Return the job script: header, exports, the lines that start the command; it stops at the first failure."""
        refuse_control_characters([self.settings, job])
        lines = ["#!/bin/bash", *self.header(job), "", *keep_exit_status(job, self.at_end())]
        lines += [*self.at_start(job), "set -euo pipefail", ""]
        return "\n".join([*lines, *self.exports(), *self.body(job)]) + "\n"

    def header(self, job: Job) -> list[str]:
        """Lines ahead of all others, such as those for a scheduler."""
        return []

    def at_start(self, job: Job) -> list[str]:
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

    def try_out(self, rendered: Sequence[Rendered]) -> tuple[list[Problem], list[Problem]]:
        """Return what keeps jobs from being launched, and what may do so, before anything is written."""
        return [], []

    def interpreter(self) -> str:
        """The Python that runs the job: the one that runs the launcher, so that both see the same packages."""
        return sys.executable

    def read_wandb_key(self, job: Job) -> list[str]:
        """Lines that read the Weights & Biases key inside the job, so that no file of ours holds it."""
        if not job.wants_wandb or self.settings.wandb_key_file is None:
            return []
        path = shlex.quote(str(Path(self.settings.wandb_key_file).absolute()))
        return [f'WANDB_API_KEY="$(head -n 1 {path})"', "export WANDB_API_KEY"]

    # --- the launch ---------------------------------------------------------------------------------------------

    def records(self, jobs: list[Job], chain: list[Job]) -> list[JobRecord]:
        """Return the records of jobs of a chain, which hold how each follows the one before."""
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
        """Return a record with what else this kind of cluster needs to start the job again."""
        return record

    def edge(self, job: Job) -> str:
        """How `job` follows the stage before it: afterok, afterany or singleton."""
        return job.dependency if job.dependency in EDGES else self.settings.dependency

    def launch(self, records: list[JobRecord]) -> int:
        """Run or submit the jobs of a chain in order, each one as its edge says; return the exit status."""
        return self.start(records)

    @classmethod
    @abstractmethod
    def start(cls, records: list[JobRecord]) -> int:
        """Run or submit the scripts of jobs whose folders are written, in order; return the exit status."""

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
        """Return the files that the job started under an id writes its output to."""
        return [record.log_file(job_id)]

    @classmethod
    def remote_logs(cls, record: JobRecord, num_lines: int) -> str | None:
        """Return the end of a log that the cluster has and the job folder has not; None where there is none."""
        return None

    @classmethod
    def for_rerun(cls, record: JobRecord) -> JobRecord:
        """Return a record as it is to be started again."""
        return record

    @classmethod
    def is_job_id(cls, text: str) -> bool:
        """Whether a text has the form of this cluster's job ids."""
        return text.isascii() and text.isdigit() and len(text) <= 18
