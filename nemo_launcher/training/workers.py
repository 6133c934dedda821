# SPDX-License-Identifier: Apache-2.0
"""Concurrent micro-batches on a CPU.

The small matrices of a frozen model occupy few cores: the threads inside one operation wait for each other at its end.
Here each worker runs its own micro-batches with its share of the threads, and workers synchronize once per global
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from nemo_launcher.data.job_distribution import distribute_jobs
from nemo_launcher.data.layout import Layout
from nemo_launcher.megatron import parallel

T = TypeVar("T")


def layout_for(size: int, device: torch.device, dtype: torch.dtype, stacks: int) -> Layout:
    """Return the layout for micro-batches of `size` samples on this rank.

    dtype: of the activations; stacks: how many stacks of layers the model has.

    On a GPU and in a model split over ranks, micro-batches run one after the other: operations and messages must keep
    the order in which they are issued.
    """
    if device.type != "cpu":
        return Layout.one_after_the_other(size)
    is_split = parallel.tensor_size() * parallel.pipeline_size() > 1
    return Layout.on_cpu(size, torch.get_num_threads(), dtype.itemsize, stacks=stacks, is_split=is_split)


def run_concurrently(work: Callable[[list[int]], T], costs: Sequence[float], workers: int) -> list[T]:
    """Distribute jobs by cost over workers and call `work` concurrently with each worker's jobs (indices).

    The distribution depends on the costs only, so sums over the results are the same in every run.
    """
    shares = [sorted(jobs, key=lambda job: -costs[job]) for jobs in distribute_jobs(costs, workers) if jobs]
    if len(shares) <= 1:  # one worker gets all threads
        return [work(jobs) for jobs in shares]
    # Every second worker starts with its smallest job, so that the largest jobs do not overlap in memory.
    shares = [jobs[::-1] if number % 2 else jobs for number, jobs in enumerate(shares)]
    return list(_pool(workers, torch.get_num_threads()).map(work, shares))


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "micro-batches", lambda: torch.set_num_threads(max(1, threads // workers)))
