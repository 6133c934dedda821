"""Jobs of different cost dealt out evenly: over model replicas, and over workers inside a process."""

from __future__ import annotations

from collections.abc import Sequence


def deal_out(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Return which jobs (indices) each share gets: the largest first, each to the share with the least so far."""
    load = [0.0] * shares
    dealt: list[list[int]] = [[] for _ in range(shares)]
    for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
        lightest = load.index(min(load))
        load[lightest] += costs[job]
        dealt[lightest].append(job)
    return dealt
