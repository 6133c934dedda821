# SPDX-License-Identifier: Apache-2.0
"""Micro-batches side by side on a CPU.

A frozen model's small matrices keep few cores busy: threads inside one operation wait for each other at its end, and
again at the next. Here each worker runs micro-batches of its own with its share of the threads, and they meet once a
global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch

from nemo_launcher.data.dealing import deal_out
from nemo_launcher.megatron import parallel

T = TypeVar("T")
# What runs side by side has no more samples than one micro-batch (groups that share a prefix stay whole), but each at
# least so many: with fewer the matrices would be too small for a core.
MIN_SAMPLES = 4
# How many bytes of one activation fill a row on a CPU (512 tokens in fp32, 1024 in bf16): with fewer the matrices are
# small, with more the activations leave the cache and take memory for nothing.
ROW_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Workers:
    """How micro-batches run side by side on a CPU."""

    count: int
    """Micro-batches that run at a time."""
    size: int
    """Samples of a micro-batch at most (data.batching.Collate)."""
    row_tokens: int | None = None
    """Tokens of a row of samples that share nothing; None: no limit."""

    @classmethod
    def for_micro_batches(cls, size: int, device: torch.device, dtype: torch.dtype) -> Workers:
        """Return how micro-batches of `size` samples are run on this rank; dtype: of the activations.

        On a GPU and in a model that is cut over ranks it is one after the other: operations and messages keep the order
        in which they are issued.
        """
        count, row_tokens = 1, ROW_BYTES // dtype.itemsize if device.type == "cpu" else None
        if device.type == "cpu" and parallel.tensor_size() == parallel.pipeline_size() == 1:
            count = max(1, min(torch.get_num_threads(), size // MIN_SAMPLES))
        return cls(count, math.ceil(size / count), row_tokens)

    def run(self, work: Callable[[list[int]], T], costs: Sequence[float]) -> list[T]:
        """Deal jobs out by their costs and call `work` with each worker's jobs (indices), side by side.

        Who does what depends on the costs alone, so sums over the results are the same in every run.
        """
        shares = [sorted(jobs, key=lambda job: -costs[job]) for jobs in deal_out(costs, self.count) if jobs]
        if len(shares) <= 1:  # all threads for one
            return [work(jobs) for jobs in shares]
        # Every second worker begins with its smallest, so that the largest do not need their memory at the same time.
        shares = [jobs[::-1] if number % 2 else jobs for number, jobs in enumerate(shares)]
        return list(_pool(self.count, torch.get_num_threads()).map(work, shares))


ONE_WORKER = Workers(1, 1)


@lru_cache(maxsize=1)
def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "micro-batches", lambda: torch.set_num_threads(max(1, threads // count)))
