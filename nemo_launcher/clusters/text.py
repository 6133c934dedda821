# SPDX-License-Identifier: Apache-2.0
"""Format text about jobs for a terminal."""

from __future__ import annotations

from nemo_launcher.clusters.record import JobRecord


def visible(text: str) -> str:
    """Return text with unprintable characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def title(job: JobRecord) -> str:
    """Return a job's name for messages."""
    return visible(job.title)
