# SPDX-License-Identifier: Apache-2.0
"""Concurrent micro-batches on a CPU.

The small matrices of a frozen model occupy few cores: the threads inside one operation wait for each other at its end.
Here each worker runs its own micro-batches with its share of the threads, and workers synchronize once per global
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch

from nemo_launcher.data.job_distribution import distribute_jobs
from nemo_launcher.megatron import parallel

T = TypeVar("T")
# Concurrent micro-batches together hold no more samples than one micro-batch (groups that share a prefix stay whole),
# but each at least this many: smaller matrices would not occupy a core.
MIN_SAMPLES = 4
# Bytes of one activation in a full row on a CPU (512 tokens in fp32, 1024 in bf16): shorter rows make small matrices,
# longer ones exceed the cache and take more memory without a gain.
ROW_BYTES = 2048
# The fixed cost of a row on a CPU, in tokens: each row reads all weights. For SmolLM2-135M on an AMD EPYC it is 25 in
# fp32 and 57 in bf16.
ROW_OVERHEAD = 32


@dataclass(frozen=True, slots=True)
class Workers:
    """How many micro-batches run concurrently on a CPU, and how large they are."""

    count: int
    """The number of micro-batches that run concurrently."""
    size: int
    """The maximum number of samples in a micro-batch (data.batching.Collate)."""
    row_tokens: int | None = None
    """The maximum number of tokens in a row of samples without a common prefix; None for no limit."""
    row_overhead: int = 0
    """The cost of a row besides that of its tokens, in tokens."""

    @classmethod
    def for_micro_batches(cls, size: int, device: torch.device, dtype: torch.dtype) -> Workers:
        """Return the workers for micro-batches of `size` samples on this rank; dtype: of the activations.

        On a GPU and in a model split over ranks, micro-batches run one after the other: operations and messages must
        keep the order in which they are issued.
        """
        if device.type != "cpu":
            return cls(1, size)
        count = 1
        if parallel.tensor_size() == parallel.pipeline_size() == 1:
            count = max(1, min(torch.get_num_threads(), size // MIN_SAMPLES))
        return cls(count, math.ceil(size / count), ROW_BYTES // dtype.itemsize, ROW_OVERHEAD)

    def run(self, work: Callable[[list[int]], T], costs: Sequence[float]) -> list[T]:
        """Distribute jobs by cost and call `work` concurrently with each worker's jobs (indices).

        The distribution depends on the costs only, so sums over the results are the same in every run.
        """
        shares = [sorted(jobs, key=lambda job: -costs[job]) for jobs in distribute_jobs(costs, self.count) if jobs]
        if len(shares) <= 1:  # one worker gets all threads
            return [work(jobs) for jobs in shares]
        # Every second worker starts with its smallest job, so that the largest jobs do not overlap in memory.
        shares = [jobs[::-1] if number % 2 else jobs for number, jobs in enumerate(shares)]
        return list(_pool(self.count, torch.get_num_threads()).map(work, shares))


ONE_WORKER = Workers(1, 1)


@lru_cache(maxsize=1)
def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "micro-batches", lambda: torch.set_num_threads(max(1, threads // count)))
