# SPDX-License-Identifier: Apache-2.0
"""Times in the format of `run.time_limit`, which is Slurm's."""

from __future__ import annotations


def minutes(limit: str) -> float:
    """Parse a Slurm time, [DAYS-]HOURS:MINUTES:SECONDS or a short form of it; return minutes."""
    days, dash, rest = limit.strip().rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    if dash:  # DAYS-HOURS[:MINUTES[:SECONDS]]
        hours, mins, seconds = (*parts, 0.0, 0.0)[:3]
    elif len(parts) == 3:
        hours, mins, seconds = parts
    else:  # MINUTES[:SECONDS]
        hours, mins, seconds = 0.0, *(*parts, 0.0)[:2]
    return float(days or 0) * 24 * 60 + hours * 60 + mins + seconds / 60
