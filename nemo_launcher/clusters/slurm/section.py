# SPDX-License-Identifier: Apache-2.0
"""The keys of the `cluster` section for Slurm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.fields import Hidden, LinesText, optional
from nemo_launcher.config.sections.common import Count, Scalar, Size


@dataclass(frozen=True)
class SlurmSection:
    """The `cluster` section for Slurm. Keys are sbatch options with _ for - unless stated otherwise."""

    partition: str | None = None
    """Partitions, separated by commas."""
    account: str | None = None
    """The account that is charged."""
    exclusive: bool | Literal["user", "mcs"] | None = None
    """Whether the job has its nodes to itself; user and mcs allow sharing within that group."""
    gpus_per_task: Count | None = None
    """GPUs per process."""
    gpus_per_node: Count | str | None = None
    """GPUs per node, as a count or as TYPE:COUNT."""
    mem: Size | str | None = None
    """Memory per node, in MB or with a unit such as 64G; 0 for all of it."""
    overcommit: bool | None = None
    """Whether processes may share a CPU."""
    job_name_prefix: str = ""
    """Prefix of each job's name. NVIDIA's launcher has this key."""
    srun_args: Annotated[list[str], Hidden()] | None = None
    """Additional arguments of srun. NVIDIA's launcher has this key."""
    signal: str | None = optional()
    """The signal that sbatch sends before the time limit, as SIGNAL@SECONDS."""
    requeue: bool | None = optional()
    """Whether a job that was stopped is put back into the queue."""
    qos: str | None = optional()
    """The quality of service."""
    constraint: str | None = optional()
    """Features that nodes must have."""
    reservation: str | None = optional()
    """The reservation to run in."""
    nodelist: str | None = optional()
    """Nodes to run on."""
    exclude: str | None = optional()
    """Nodes not to run on."""
    gres: str | None = optional()
    """Generic resources per node."""
    cpus_per_task: Count | None = optional()
    """CPUs per process."""
    wait_all_nodes: Literal[0, 1] | None = optional()
    """1 to start when all nodes are ready, 0 to start when one is."""
    comment: str | None = optional()
    """A comment that Slurm keeps with the job."""
    mail_type: str | None = optional()
    """The events that Slurm sends mail for."""
    mail_user: str | None = optional()
    """The address of that mail."""
    additional_parameters: Annotated[dict[str, Scalar | None], Hidden()] | None = optional()
    """Additional sbatch options. submitit has this key."""
    setup: Annotated[list[LinesText], Hidden()] | None = optional()
    """Shell lines that run before the command. submitit has this key."""
