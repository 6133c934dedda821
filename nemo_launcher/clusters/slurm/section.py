# SPDX-License-Identifier: Apache-2.0
"""The keys of the `cluster` section for Slurm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.fields import Hidden, LinesText, optional
from nemo_launcher.config.sections.common import Count, Scalar, Size


@dataclass(frozen=True)
class SlurmSection:
    """The `cluster` section for Slurm. Keys are sbatch options with _ for -, except where another origin is named."""

    partition: str | None = None
    """Partitions, separated by commas."""
    account: str | None = None
    """The account that is charged."""
    exclusive: bool | Literal["user", "mcs"] | None = None
    """Whether the nodes are not shared, or whom they are shared with."""
    gpus_per_task: Count | None = None
    """GPUs of each process."""
    gpus_per_node: Count | str | None = None
    """GPUs of each node, as a count or as TYPE:COUNT."""
    mem: Size | str | None = None
    """Memory of each node, in MB or with a unit such as 64G; 0: all of it."""
    overcommit: bool | None = None
    """Whether processes may share a CPU."""
    job_name_prefix: str = ""
    """Put before each job's name. NVIDIA's launcher has this key."""
    srun_args: Annotated[list[str], Hidden()] | None = None
    """Further arguments of srun. NVIDIA's launcher has this key."""
    signal: str | None = optional()
    """The signal that sbatch sends before the time limit, as SIGNAL@SECONDS."""
    requeue: bool | None = optional()
    """Whether a job that was stopped goes back into the queue."""
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
    """Generic resources of each node."""
    cpus_per_task: Count | None = optional()
    """CPUs of each process."""
    comment: str | None = optional()
    """A comment that Slurm keeps with the job."""
    mail_type: str | None = optional()
    """The events that Slurm sends mail for."""
    mail_user: str | None = optional()
    """The address of that mail."""
    additional_parameters: Annotated[dict[str, Scalar | None], Hidden()] | None = optional()
    """Further sbatch options. The key is submitit's."""
    setup: Annotated[list[LinesText], Hidden()] | None = optional()
    """Shell lines that run before the command. The key is submitit's."""
