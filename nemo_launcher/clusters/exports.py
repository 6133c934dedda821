# SPDX-License-Identifier: Apache-2.0
"""The environment variables that job scripts export by themselves, each with its reason; `env_vars` overrides them.

Others that NVIDIA's launcher sets are left out, since they would do nothing or harm: docs/clusters.md has the list.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from nemo_launcher.clusters.job import Job


@dataclass(frozen=True, slots=True)
class Export:
    """A variable of some jobs."""

    name: str
    """Its name."""
    value: str
    """Its value."""
    is_default: bool
    """Whether a value that the job finds, such as one of the site, takes precedence."""
    applies: Callable[[Job], bool]
    """Returns whether a job gets it."""
    jobs: str
    """Which jobs these are, for the documentation."""
    reason: str
    """Why they need it, for the documentation."""

    @property
    def line(self) -> str:
        """The line of the script."""
        value = f'"${{{self.name}:-{self.value}}}"' if self.is_default else shlex.quote(self.value)
        return f"export {self.name}={value}"


EXPORTS = (
    Export(
        name="CUDA_DEVICE_MAX_CONNECTIONS",
        value="1",
        is_default=False,
        applies=lambda job: job.wants_gpu and job.splits_layers,
        jobs="tensor parallelism on GPUs",
        reason="with one hardware queue, kernels start in the order in which they were launched, which Megatron-core's "
        "layers rely on to run a collective beside the product after it",
    ),
    Export(
        name="NCCL_DEBUG",
        value="WARN",
        is_default=True,
        applies=lambda job: job.wants_gpu and job.devices * job.num_nodes > 1,
        jobs="several ranks on GPUs",
        reason="NCCL says nothing by default; with it, the log has the cause of a failed or timed-out collective",
    ),
)
"""NCCL itself chooses its algorithms, protocols and network from the machine, so nothing else is set for it."""


def own_exports(job: Job) -> dict[str, str]:
    """Return the line of each variable that a job exports by itself: {name: line}."""
    return {export.name: export.line for export in EXPORTS if export.applies(job)}
