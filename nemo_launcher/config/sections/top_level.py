# SPDX-License-Identifier: Apache-2.0
"""The top level of the configuration; the schema of `cluster` is in each cluster type's folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.fields import Hidden, PathText
from nemo_launcher.config.sections.common import Count, Scalar


@dataclass(frozen=True)
class NumaMapping:
    """`numa_mapping`: binding of each rank to CPU cores near its GPU. NVIDIA's keys."""

    enable: bool = False
    """Whether ranks are bound."""
    mode: Literal["all", "single", "single_unique", "unique_interleaved", "unique_contiguous"] = "unique_contiguous"
    """The cores of a rank: all near its GPU, one, or its own part of them.

    single is the first one, single_unique one of its own; unique_interleaved takes every n-th one.
    """
    scope: Literal["node", "socket"] = "node"
    """What counts as near: the GPU's NUMA node, or its socket."""
    cores: Literal["all_logical", "single_logical"] = "all_logical"
    """Whether a rank uses all logical CPUs of a core, or one."""
    balanced: bool = True
    """Whether all ranks get the same number of cores, even if some are left over."""
    min_cores: Count | None = 1
    """Cores of a rank; with fewer, it is not bound."""
    max_cores: Count | None = 8
    """Maximum cores of a rank; null for no limit."""


@dataclass(frozen=True)
class TopLevel:
    """The keys of conf/config.yaml outside the groups."""

    launcher_scripts_path: PathText
    """The folder with the scripts that jobs run."""
    data_dir: PathText
    """The folder for data."""
    base_results_dir: PathText
    """The folder for job folders and results."""
    container: str | None = None
    """The container image that jobs run in; null for none."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """Slurm only: what runs the image, the plugin pyxis of srun or the command apptainer on the nodes."""
    container_mounts: list[str | None] | None = None
    """Paths to mount into the container, as SOURCE or SOURCE:TARGET."""
    wandb_api_key_file: PathText | None = None
    """The file with the API key of Weights & Biases."""
    wandb_api_bcp_secret_key: Annotated[str, Hidden()] | None = None
    """The name of the Base Command Platform secret with this key."""
    bcp_no_redirect: bool = True
    """Base Command Platform only: whether output stays on the terminal rather than in log files."""
    env_vars: Annotated[dict[str, Scalar | None], Hidden()] | None = None
    """Environment variables of every job; null leaves a variable unchanged."""
    numa_mapping: NumaMapping | None = None
    """Binding of ranks to CPU cores near their GPUs."""
    dependency: Literal["afterok", "afterany", "singleton"] = "afterok"
    """When a stage starts: after the previous one has succeeded or has ended, or by a shared job name."""
    preflight: Literal["error", "warn", "off"] = "error"
    """The effect of a failed check of files and resources: refuse, warn, or off to skip the checks."""
    debug: bool = False
    """Whether scripts are only written and nothing is started."""
