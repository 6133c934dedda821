# SPDX-License-Identifier: Apache-2.0
"""Jobs of different cost dealt out evenly: over model replicas, and over workers inside a process."""

from __future__ import annotations

from collections.abc import Sequence


def deal_out(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Return which jobs (indices) each share gets: the largest first, each to the share with the least so far.

    Then jobs of the largest share move, or change places with smaller ones, as long as that makes it smaller.
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
    """Return the largest share, another one, a job for that and one in return (None: none); None where nothing helps.

    The best such change counts; it makes the larger of both shares smaller than the largest was.
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
