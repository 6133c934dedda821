"""The job folder: the script, the resolved configuration and the command line, enough to run the job again."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_launcher.files import write_text

SECRET = re.compile(r"(key|token|secret|password)$", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What a launcher needs to know of one stage.

    command: the argv of one process, without the interpreter; devices: processes on each node; dependency: of the first
    job in a chain; inputs: files it reads; outputs: what has to be there once the job has worked; wants_gpu: takes one
    where there is one; needs_gpu: cannot do without.
    """

    stage: str
    name: str
    folder: Path
    config: dict[str, Any]
    command: list[str]
    devices: int
    num_nodes: int
    dependency: str | None
    time_limit: str | None
    inputs: list[Path]
    outputs: list[Path]
    wants_gpu: bool
    needs_gpu: bool
    wants_wandb: bool

    @property
    def script_file(self) -> Path:
        """`<job>_submission.sh`"""
        return self.folder / f"{self.name}_submission.sh"

    @property
    def config_file(self) -> Path:
        """`<job>_hydra.yaml`"""
        return config_file(self.folder, self.name)

    def log_file(self, job_id: str, suffix: str = "out") -> Path:
        """`log-<job>_<jobid>.out` or .err"""
        return self.folder / f"log-{self.name}_{job_id}.{suffix}"


def config_file(folder: Path, name: str) -> Path:
    """Where the resolved configuration of the job `name` goes."""
    return folder / f"{name}_hydra.yaml"


def write(job: Job, script: str) -> None:
    """Write the job folder; a script or command line may hold what only its owner should read."""
    job.folder.mkdir(parents=True, exist_ok=True)
    heading = f"# {job.stage}: the configuration of this job, every value resolved; {job.command[0]} reads it\n"
    write_text(job.config_file, heading + to_yaml(job.config))
    with _private():
        write_text(job.script_file, script)
        os.chmod(job.script_file, 0o700)
        with (job.folder / "launcher_cmd.log").open("a", encoding="utf-8") as log:
            log.write(command_line() + "\n")


def record(job: Job, event: str) -> None:
    """Append one line with the time to the job folder's launcher.log."""
    with _private(), (job.folder / "launcher.log").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {event}\n")


def command_line() -> str:
    """The launcher's own command line, secrets left out."""
    return shlex.join(["python3", *map(_without_secret, sys.argv)])


def to_yaml(value: Any) -> str:
    """Return `value` as YAML that OmegaConf and PyYAML read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e5, which OmegaConf takes for a number and PyYAML does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)?\.?[\d_]*[eE][-+]?\d+"), list("-+0123456789.")
)


def _without_secret(argument: str) -> str:
    key, equals, _ = argument.partition("=")
    # wandb_api_bcp_secret_key holds a name, not a key
    return f"{key}=***" if equals and SECRET.search(key) and key != "wandb_api_bcp_secret_key" else argument


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Files made here are the owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
