# SPDX-License-Identifier: Apache-2.0
"""Balanced distribution of jobs with different costs over model replicas, or over workers of a process."""

from __future__ import annotations

from collections.abc import Sequence


def distribute_jobs(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Return the jobs (indices) of each share: largest first, each to the share with the lowest cost.

    Then jobs of the largest share are moved, or swapped with smaller ones, while that reduces its cost.
    """
    load = [0.0] * shares
    dealt: list[list[int]] = [[] for _ in range(shares)]
    for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
        lightest = load.index(min(load))
        load[lightest] += costs[job]
        dealt[lightest].append(job)
    while (change := _improvement(costs, load, dealt)) is not None:
        heaviest, other, job, back = change
        dealt[heaviest].remove(job)
        dealt[other].append(job)
        if back is not None:
            dealt[other].remove(back)
            dealt[heaviest].append(back)
        load = [sum(costs[job] for job in jobs) for jobs in dealt]
    return dealt


def _improvement(
    costs: Sequence[float], load: Sequence[float], dealt: Sequence[Sequence[int]]
) -> tuple[int, int, int, int | None] | None:
    """Return the best change: largest share, other share, job to move, and job to return (or None); None if none helps.

    A change helps if both shares become smaller than the largest share was.
    """
    heaviest = load.index(max(load))
    best, found = load[heaviest], None
    for other, jobs in enumerate(dealt):
        for job in dealt[heaviest] if other != heaviest else ():
            for back in (None, *jobs):
                moved = costs[job] - (0 if back is None else costs[back])
                larger = max(load[heaviest] - moved, load[other] + moved)
                if larger < best:
                    best, found = larger, (heaviest, other, job, back)
    return found
