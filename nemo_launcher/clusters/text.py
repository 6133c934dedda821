# SPDX-License-Identifier: Apache-2.0
"""Text about jobs for a terminal."""

from __future__ import annotations

from nemo_launcher.clusters.record import JobRecord


def visible(text: str) -> str:
    """Return text as a terminal and any encoding of UTF-8 can show it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def title(job: JobRecord) -> str:
    """Return how messages call a job."""
    return visible(job.title)
