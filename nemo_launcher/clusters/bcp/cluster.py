# SPDX-License-Identifier: Apache-2.0
"""Base Command Platform: the launcher runs inside the job and starts each stage on the job's nodes with bcprun."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import ClassVar

from nemo_launcher.clusters.interactive.cluster import Interactive
from nemo_launcher.clusters.job import Job
from nemo_launcher.errors import Problem

REPLICA_NAMES = ("NGC_REPLICA_ID", "NGC_ARRAY_INDEX")  # variables with the replica's number in a BCP job


class BaseCommand(Interactive):
    """Run the stages one after another like the interactive launcher; bcprun sets RANK and similar variables."""

    cluster_type: ClassVar[str] = "bcp"
    title: ClassVar[str] = "Base Command Platform"
    aliases: ClassVar[tuple[str, ...]] = ("ngc",)
    keys: ClassVar[tuple[str, ...]] = ("bcp_no_redirect", "wandb_api_bcp_secret_key")

    @classmethod
    def detect(cls) -> bool:
        return bool(os.environ.get("NGC_JOB_ID"))

    def problems(self, jobs: list[Job]) -> list[Problem]:
        if self.settings.debug:
            return []
        problems = []
        if not shutil.which("bcprun"):
            fix = "launch inside a BCP job; cluster_type=interactive runs here; debug=True only writes the scripts"
            problems.append(Problem("cluster_type", "bcp needs bcprun, which is not on the PATH", fix))
        nodes, gpus = _number("NGC_ARRAY_SIZE"), _number("NGC_GPUS_PER_NODE")
        for job in jobs:
            if nodes is not None and job.num_nodes > nodes:
                key = f"{job.stage}.trainer.num_nodes"
                what = f"{job.num_nodes} nodes, but this BCP job has {nodes} (NGC_ARRAY_SIZE)"
                fix = f"{key}={nodes}, or create the BCP job with --replicas {job.num_nodes}"
                problems.append(Problem(key, what, fix))
            if gpus is not None and job.needs_gpu and job.devices > gpus:
                key = f"{job.stage}.trainer.devices"
                what = f"{job.devices} devices, but a node of this BCP job has {gpus} GPUs (NGC_GPUS_PER_NODE)"
                problems.append(Problem(key, what, f"{key}={gpus}, or create the BCP job with larger instances"))
        return problems

    def warnings(self, jobs: list[Job]) -> list[Problem]:
        nodes = _number("NGC_ARRAY_SIZE")
        used = max(jobs, key=lambda job: job.num_nodes)
        if nodes is None or used.num_nodes >= nodes or self.settings.debug:
            return []
        key = f"{used.stage}.trainer.num_nodes"
        what = f"uses {used.num_nodes} of the {nodes} nodes of this BCP job; the others stay idle"
        return [Problem(key, what, f"{key}={nodes} uses all")]

    def should_launch(self) -> bool:
        """Return True only in the first replica; bcprun starts the processes on the others."""
        replica = next((os.environ[name] for name in REPLICA_NAMES if os.environ.get(name)), "0")
        if replica == "0" or self.settings.debug:
            return True
        print(f"replica {replica} of this BCP job: nothing to do, replica 0 launches", flush=True)
        return False

    def body(self, job: Job) -> list[str]:
        load = [f". {shlex.quote(str(job.variables_file))}"] if self.exports(job) else []
        start = f"exec {shlex.join([self.interpreter(), '-u', *job.command])}"
        inner = [*load, *self._read_key_on_node(job), start]
        command = ["bcprun", "--nnodes", str(job.num_nodes), "--npernode", str(job.devices)]
        if self.settings.bcp_no_redirect:
            command.append("-no_redirect")
        command += ["--cmd", f"bash -c {shlex.quote('; '.join(inner))}"]
        return [*self._keep_variables(job), shlex.join(command)]

    def _keep_variables(self, job: Job) -> list[str]:
        """Return lines that write the exported variables to a private file, which the ranks' nodes read.

        bcprun's --env takes only KEY=VALUE, which would show the values in the nodes' process lists.
        """
        if not self.exports(job):
            return []
        names, file = " ".join(self.exports(job)), shlex.quote(str(job.variables_file))
        return [f"rm -f {file}", f"(umask 077; declare -px {names} > {file})"]

    def _read_key_on_node(self, job: Job) -> list[str]:
        """Return lines that take the Weights & Biases key from BCP's secret variable, or else from the key file."""
        name = self.settings.wandb_key_name
        if name is None:
            return ["set -e", *self.read_wandb_key(job)] if self.read_wandb_key(job) else []
        return [f'export WANDB_API_KEY="${{{name}}}"'] if job.wants_wandb else []


def _number(name: str) -> int | None:
    """Return a number from the BCP job's environment; None outside such a job."""
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() and int(value) > 0 else None
