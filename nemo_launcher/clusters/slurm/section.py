# SPDX-License-Identifier: Apache-2.0
"""The keys of the `cluster` section for Slurm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.schema import OPTIONAL, Hidden, LinesText
from nemo_launcher.config.sections.common import Count, Scalar, Size


@dataclass
class SlurmSection:
    """Each key is an sbatch option, with _ for -."""

    partition: str | None = None
    account: str | None = None
    exclusive: bool | Literal["user", "mcs"] | None = None
    gpus_per_task: Count | None = None
    gpus_per_node: Count | str | None = None
    mem: Size | str | None = None
    overcommit: bool | None = None
    job_name_prefix: str = ""
    srun_args: Annotated[list[str], Hidden()] | None = None
    signal: str | None = OPTIONAL
    requeue: bool | None = OPTIONAL
    qos: str | None = OPTIONAL
    constraint: str | None = OPTIONAL
    reservation: str | None = OPTIONAL
    nodelist: str | None = OPTIONAL
    exclude: str | None = OPTIONAL
    gres: str | None = OPTIONAL
    cpus_per_task: Count | None = OPTIONAL
    comment: str | None = OPTIONAL
    mail_type: str | None = OPTIONAL
    mail_user: str | None = OPTIONAL
    additional_parameters: Annotated[dict[str, Scalar | None], Hidden()] | None = OPTIONAL
    setup: Annotated[list[LinesText], Hidden()] | None = OPTIONAL
