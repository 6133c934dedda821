# SPDX-License-Identifier: Apache-2.0
"""Facts about cluster types that job records need; filled by the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A cluster type as job records see it."""

    queues: bool
    """Whether jobs are submitted to a scheduler, so that several from one folder may be active."""
    is_job_id: Callable[[str], bool]
    """Returns whether a text has the form of a job id."""


KINDS: dict[str, Kind] = {}
"""The cluster types by the value of `cluster_type`."""
