# SPDX-License-Identifier: Apache-2.0
"""What a job's record needs to know of the kinds of clusters; the registry fills it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of cluster, as records know it."""

    queues: bool
    """Jobs are handed over to a scheduler, so that several of one folder may be active."""
    is_job_id: Callable[[str], bool]
    """Whether a text has the form of a job id."""


KINDS: dict[str, Kind] = {}
"""By the value of `cluster_type`."""
