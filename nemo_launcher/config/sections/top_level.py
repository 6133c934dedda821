# SPDX-License-Identifier: Apache-2.0
"""The top level of the configuration and the cluster section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.schema import OPTIONAL, Hidden, LinesText, PathText
from nemo_launcher.config.sections.common import Count, Scalar, Size


@dataclass
class NumaMapping:
    """Binding of ranks to CPU memory nodes."""

    enable: bool = False
    mode: str = OPTIONAL
    scope: str = OPTIONAL
    cores: str = OPTIONAL
    balanced: bool = OPTIONAL
    min_cores: Count = OPTIONAL
    max_cores: Count = OPTIONAL


@dataclass
class Cluster:
    """Slurm: each key is an sbatch option, with _ for -."""

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


@dataclass
class TopLevel:
    """conf/config.yaml without the groups."""

    launcher_scripts_path: PathText
    data_dir: PathText
    base_results_dir: PathText
    container: str | None = None
    container_mounts: list[str | None] | None = None
    wandb_api_key_file: PathText | None = None
    wandb_api_bcp_secret_key: Annotated[str, Hidden()] | None = None
    bcp_no_redirect: bool = True
    env_vars: Annotated[dict[str, Scalar | None], Hidden()] | None = None
    numa_mapping: NumaMapping | None = None
    dependency: Literal["afterok", "afterany", "singleton"] = "afterok"
    preflight: Literal["error", "warn", "off"] = "error"
    debug: bool = False
