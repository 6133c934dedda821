# SPDX-License-Identifier: Apache-2.0
"""How the samples of a global batch are laid out: how long rows are, and how many micro-batches run concurrently.

Imports no torch: the launcher estimates memory with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_launcher.data.job_distribution import distribute_jobs
from nemo_launcher.runtime.row_costs import FIXED, RowCosts

# Concurrent micro-batches together hold no more samples than one micro-batch (groups that share a prefix stay whole),
# but each at least this many: smaller matrices would not occupy a core.
_MIN_SAMPLES = 4
# Bytes of one activation in a full row on a CPU, for each stack of layers (512 tokens of a GPT in fp32, 1024 in bf16):
# shorter rows make small matrices, longer ones exceed the cache and take more memory without a gain. A T5's rows are
# twice as long: each row reads the weights of both stacks, those of the decoder for a few tokens only.
_ROW_BYTES = 2048
FULL_ROW = 16_384
"""Tokens of a row that keep a GPU busy: longer rows take more memory without a gain."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many micro-batches of a model replica run concurrently, and how large they are."""

    workers: int
    """The number of micro-batches that run concurrently."""
    size: int
    """The maximum number of samples without a common prefix in a micro-batch."""
    threads: int = 1
    """The number of threads that share the operations of a micro-batch."""

    def costs_of(self, rows: Sequence[Sequence[float]], costs: RowCosts) -> list[float]:
        """Return the cost of each micro-batch; rows: the number of tokens of each micro-batch's rows."""
        return [sum(costs.cost(tokens, self.threads) for tokens in micro) for micro in rows]

    def largest_share(self, rows: Sequence[Sequence[float]], ranks: int, costs: RowCosts) -> float:
        """Return the cost of the worker with most to do; rows: the number of tokens of each micro-batch's rows."""
        threads, workers = self.threads, self.workers
        if ranks == 1 and len(rows) == 1 and (not costs.is_calibrated or costs.has(workers * threads)):
            threads, workers = workers * threads, 1  # a single micro-batch gets all threads
        each = replace(self, threads=threads).costs_of(rows, costs)
        return max(sum(each[place] for place in places) for places in distribute_jobs(each, ranks * workers))


@dataclass(frozen=True, slots=True)
class Layout:
    """The limits and costs by which samples are cut into micro-batches."""

    choices: tuple[Concurrency, ...]
    """The possible concurrency, the default first."""
    row_tokens: int | None = None
    """The maximum number of tokens in a row of samples without a common prefix; None for no limit."""
    costs: RowCosts = FIXED
    """The cost of a row."""

    @classmethod
    def one_after_the_other(cls, size: int) -> Layout:
        """Return the layout of micro-batches of at most `size` samples that run one after the other."""
        return cls((Concurrency(1, size),))

    @classmethod
    def on_cpu(cls, size: int, threads: int, element_bytes: int, *, stacks: int, is_split: bool) -> Layout:
        """Return the layout for micro-batches of `size` samples on a CPU.

        threads: those of the process; element_bytes: of an activation; stacks: how many stacks of layers the model
        has (2 in a T5); is_split: whether several ranks share the model, which run their micro-batches one after the
        other.
        """
        workers = 1 if is_split else max(1, min(threads, size // _MIN_SAMPLES))
        return cls(
            (Concurrency(workers, math.ceil(size / workers), threads // workers),),
            row_tokens=stacks * _ROW_BYTES // element_bytes,
        )

    def most_tokens(self, size: int, longest: int) -> float:
        """Return the maximum number of tokens of a micro-batch: those of `size` of the longest samples.

        Where it is known what fits into the memory of a GPU, at least FULL_ROW, but not more than fits.
        """
        most = float(size * longest)
        if self.costs.fitting_tokens is None:
            return most
        return max(longest, min(self.costs.fitting_tokens, max(most, FULL_ROW)))

    def calibrated(self, costs: RowCosts) -> Layout:
        """Return the layout with measured costs. It then has a choice of each concurrency that was measured."""
        if costs.fitting_tokens is not None:
            return replace(self, costs=costs)
        if not costs.is_calibrated or not costs.has(self.choices[0].threads):
            return self
        choices = [choice for choice in self.possible() if costs.has(choice.threads)]
        return replace(self, choices=tuple(choices), costs=costs)

    def possible(self) -> list[Concurrency]:
        """Return the default concurrency, and those with half as many workers, a quarter, ..., one."""
        default = self.choices[0]
        samples, threads = default.workers * default.size, default.workers * default.threads
        counts = dict.fromkeys(default.workers >> halvings for halvings in range(default.workers.bit_length()))
        return [Concurrency(count, math.ceil(samples / count), threads // count) for count in counts]
