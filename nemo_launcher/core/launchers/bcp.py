"""Base Command Platform: the launcher runs inside the job and starts each stage on the job's nodes with bcprun."""

from __future__ import annotations

import os
import shlex
from typing import ClassVar

from nemo_launcher.core.job import Job
from nemo_launcher.core.launchers.interactive import InteractiveLauncher
from nemo_launcher.errors import Problem


class BCPLauncher(InteractiveLauncher):
    """Runs the stages one after another like the interactive launcher; bcprun sets RANK and the like."""

    cluster_type: ClassVar[str] = "bcp"

    def problems(self, jobs: list[Job]) -> list[Problem]:
        available = os.environ.get("NGC_ARRAY_SIZE", "")
        return [
            Problem(
                f"{job.stage}.trainer.num_nodes",
                f"{job.num_nodes} nodes, but this BCP job has {available}",
                "create the BCP job with more replicas, or ask for fewer nodes",
            )
            for job in jobs
            if available.isdigit() and job.num_nodes > int(available) and not self.settings.debug
        ]

    def body(self, job: Job) -> list[str]:
        inner = [*self._read_key_on_node(job), f"exec {shlex.join([self.interpreter(), '-u', *job.command])}"]
        command = ["bcprun", "--nnodes", str(job.num_nodes), "--npernode", str(job.devices)]
        if self.settings.bcp_no_redirect:
            command.append("-no_redirect")
        for name, value in self.settings.env_vars.items():
            command += ["--env", f"{name}={value}"]
        return [shlex.join([*command, "--cmd", f"bash -c {shlex.quote('; '.join(inner))}"])]

    def _read_key_on_node(self, job: Job) -> list[str]:
        """By the name of the variable that BCP's secret is in, else from the key file."""
        name = self.settings.wandb_key_name
        if name is None:
            return ["set -e", *self.read_wandb_key(job)] if self.read_wandb_key(job) else []
        return [f'export WANDB_API_KEY="${{{name}}}"'] if job.wants_wandb else []
