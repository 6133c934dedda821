# SPDX-License-Identifier: Apache-2.0
"""The job folder: script, resolved configuration and command line, sufficient to run the job again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.files.atomic import write_text
from nemo_launcher.files.foreign_yaml import dump_yaml
from nemo_launcher.runtime.progress_file import PROGRESS_NAME


@dataclass(frozen=True, kw_only=True)
class JobFiles:
    """A job and its files."""

    stage: str
    """The stage that it runs."""
    name: str
    """The base name of its files."""
    folder: Path
    """The job folder."""
    outputs: list[Path]
    """Files that exist after the job has succeeded."""

    @property
    def script_file(self) -> Path:
        """`<job>_submission.sh`"""
        return self.folder / f"{self.name}_submission.sh"

    @property
    def config_file(self) -> Path:
        """`<job>_hydra.yaml`"""
        return config_file(self.folder, self.name)

    @property
    def exit_status_file(self) -> Path:
        """`<job>_exit_status`: the script's exit status, written when it ends; absent while it runs."""
        return self.folder / f"{self.name}_exit_status"

    @property
    def variables_file(self) -> Path:
        """`<job>_env.sh`: the exported variables for other nodes, written by the script on Base Command Platform."""
        return self.folder / f"{self.name}_env.sh"

    def log_file(self, job_id: str, suffix: str = "out") -> Path:
        """Return the path of `log-<job>_<jobid>.out` or .err."""
        return self.folder / f"log-{self.name}_{job_id}.{suffix}"


@dataclass(frozen=True, kw_only=True)
class Job(JobFiles):
    """One stage as a cluster sees it."""

    config: dict[str, object]
    """The resolved configuration of the stage."""
    command: list[str]
    """The arguments of one process, without the interpreter."""
    devices: int
    """Processes on each node."""
    num_nodes: int
    """Number of nodes."""
    dependency: str | None
    """Its dependency on jobs other than the previous stage."""
    time_limit: str | None
    """Wall-clock limit in sbatch's format."""
    inputs: list[Path]
    """Files and folders that it reads."""
    writes: list[Path]
    """All files and folders that it may write, besides those of the job folder."""
    wants_gpu: bool
    """Whether it uses a GPU when there is one."""
    needs_gpu: bool
    """Whether it cannot run without a GPU."""
    wants_wandb: bool
    """Whether it logs to Weights & Biases."""
    splits_layers: bool = False
    """Whether tensor-parallel ranks share each layer."""
    previous: Path | None = None
    """The script of the stage before it in its chain; None for the first one."""

    @property
    def progress_file(self) -> Path | None:
        """The file with a training's progress; None for other jobs."""
        logs = value_of(self.config, "exp_manager.explicit_log_dir")
        return None if logs is None else Path(str(logs)) / PROGRESS_NAME


def config_file(folder: Path, name: str) -> Path:
    """Return the path of the resolved configuration of the job `name`."""
    return folder / f"{name}_hydra.yaml"


def config_text(job: Job) -> str:
    """Return the content of `<job>_hydra.yaml`."""
    heading = f"# {job.stage}: the configuration of this job, every value resolved; {job.command[0]} reads it\n"
    return heading + dump_yaml(job.config)


def write(job: Job, script: str, more: Mapping[Path, str], command_line: str) -> None:
    """Write the job folder, readable only by its owner because scripts and command lines may contain private values.

    more: other files of the job's cluster; command_line: the launcher's own, with possible secrets masked.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with private():
        write_text(job.config_file, config_text(job))
        for path, text in more.items():
            write_text(path, text)
        write_text(job.script_file, script)
        os.chmod(job.script_file, 0o700)
        with (job.folder / "launcher_cmd.log").open("a", encoding="utf-8") as log:
            log.write(command_line + "\n")


def record(job: JobFiles, event: str) -> None:
    """Append one line with a timestamp to the job folder's launcher.log."""
    with private(), (job.folder / "launcher.log").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {event}\n")


def moved_from(config: object, folder: Path) -> str | None:
    """Return the folder that a job's configuration names if it differs from the folder that it is in; else None."""
    named = value_of(config, "run.results_dir")
    if not isinstance(named, str) or "\0" in named or os.path.realpath(named) == os.path.realpath(folder):
        return None
    return named


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Create files inside this context with permissions for their owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
