# SPDX-License-Identifier: Apache-2.0
"""Mixtures of tasks: how many samples of each task an epoch has, and which ones.

A task's samples come in passes. Each pass holds every sample of the task once, in an order of its own, and an epoch
continues where the previous one stopped. So every sample is used before any is repeated, and any epoch can be computed
without those before it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from nemo_launcher.config.sections.learning import Mixture
from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.prefix_tree import IntArray, PrefixOrder
from nemo_launcher.data.records import read_records
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError


def task_shares(sizes: Mapping[str, int], mixture: Mixture) -> dict[str, float]:
    """Return the share of each task in an epoch; sizes: the number of samples of each task.

    With weights w: w_t / sum(w). Otherwise min(n_t, K)^(1/T) / sum: T5's examples-proportional mixing with the limit K
    and the temperature T (arXiv 1910.10683, section 3.5.2).
    """
    if mixture.weights is not None:
        rates = {name: mixture.weights.get(name, 0.0) for name in sizes}
    else:
        limit = mixture.max_per_task or max(sizes.values())
        rates = {name: min(size, limit) ** (1 / mixture.temperature) for name, size in sizes.items()}
    if math.isinf(sum(rates.values())):
        rates = {name: rate / len(rates) for name, rate in rates.items()}
    total = sum(rates.values())
    return {name: rate / total if total else 1 / len(rates) for name, rate in rates.items()}


def samples_per_epoch(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Divide `total` samples by shares, as exactly as whole numbers allow (the largest-remainder method)."""
    exact = {name: Fraction(share) * total for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(counts, key=lambda name: counts[name] - exact[name])
    for name in by_rest[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


@dataclass(frozen=True, slots=True)
class MixedTasks:
    """The samples of each task, and how many of them an epoch has."""

    members: Mapping[str, IntArray]
    """The indices of each task's samples, in ascending order."""
    counts: Mapping[str, int]
    """The number of samples of each task in an epoch."""
    absent: Sequence[str] = ()
    """The tasks that have a weight but no samples."""

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        paths: Sequence[str],
        templates: Sequence[TaskTemplate],
        mixture: Mixture,
        columns: Mapping[str, str] | None = None,
    ) -> MixedTasks:
        """Return the tasks of the samples of data files; tasks without samples are left out.

        Raises UserError if no task with samples has a weight.
        """
        places: dict[str, list[int]] = {}
        for index, name in enumerate(_tasks_of(samples, paths, Tasks.of(templates), columns)):
            places.setdefault(name, []).append(index)
        members = {name: np.array(places[name], np.int64) for name in sorted(places)}
        wanted = [name for name, weight in (mixture.weights or {}).items() if weight > 0]
        if wanted and not members.keys() & wanted:
            what = f"no training sample is of {' or '.join(wanted)}, and the weights of the others are 0"
            fix = "correct the tasknames of the records or of the weights"
            raise UserError(Problem("model.data.mixture.weights", what, fix))
        shares = task_shares({name: len(found) for name, found in members.items()}, mixture)
        absent = [name for name in wanted if name not in members]
        return cls(members, samples_per_epoch(shares, len(samples)), absent)

    def __str__(self) -> str:
        total = sum(self.counts.values())
        parts = [
            f"{name} {100 * count / total:.1f}% ({count:,} of {len(self.members[name]):,} samples)"
            for name, count in self.counts.items()
        ]
        without = f"; no samples of {', '.join(self.absent)}" if self.absent else ""
        return f"mixture of each epoch: {', '.join(parts)}{without}"

    def order(self, epoch: int, prefixes: PrefixOrder | None, seed: int, batch_size: int) -> list[int]:
        """Return the samples of an epoch (0-based) in order; prefixes: keeps samples with common ones together.

        A sample that occurs several times in the epoch is shuffled as often, so that its copies are not neighbors.
        """
        chosen = np.concatenate([self._chosen(name, epoch, prefixes, seed, batch_size) for name in self.members])
        generator = torch.Generator().manual_seed(seed + epoch)
        if prefixes is None:
            return [int(place) for place in _shuffled(chosen, generator)]
        times = np.bincount(chosen, minlength=len(prefixes.members))
        copies = [_restricted(prefixes, times > number) for number in range(int(times.max()))]
        members, shared = (np.concatenate([getattr(copy, name) for copy in copies]) for name in ("members", "shared"))
        return PrefixOrder(members, shared).shuffled(generator, batch_size)

    def _chosen(self, name: str, epoch: int, prefixes: PrefixOrder | None, seed: int, batch_size: int) -> IntArray:
        """Return the samples of a task in an epoch."""
        size, count = len(self.members[name]), self.counts[name]
        first, last = epoch * count, (epoch + 1) * count
        passes = range(first // size, -(-last // size))
        orders = [self._pass_order(name, number, prefixes, seed, batch_size) for number in passes]
        start = first - passes.start * size
        return np.concatenate([np.zeros(0, np.int64), *orders])[start : start + count]

    def _pass_order(self, name: str, number: int, prefixes: PrefixOrder | None, seed: int, batch_size: int) -> IntArray:
        """Return all samples of a task in the order of a pass."""
        text = json.dumps([seed, name, number])
        mixed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
        generator, members = torch.Generator().manual_seed(mixed), self.members[name]
        if prefixes is None:
            return _shuffled(members, generator)
        keep = np.zeros(len(prefixes.members), bool)
        keep[members] = True
        return np.array(_restricted(prefixes, keep).shuffled(generator, batch_size), np.int64)


def _shuffled(indices: IntArray, generator: torch.Generator) -> IntArray:
    shuffled: IntArray = indices[torch.randperm(len(indices), generator=generator).numpy()]
    return shuffled


def _restricted(prefixes: PrefixOrder, keep: np.ndarray) -> PrefixOrder:
    """Return the common prefixes of some samples; keep: whether to keep each sample."""
    places = np.flatnonzero(keep[prefixes.members])
    shared = np.zeros(len(places), np.int64)
    if len(places) > 1:  # what two samples share is the least that any neighbors between them share
        shared[1:] = np.minimum.reduceat(prefixes.shared[: places[-1] + 1], places[:-1] + 1)
    return PrefixOrder(prefixes.members[places], shared)


def _tasks_of(
    samples: Sequence[Sample], paths: Sequence[str], tasks: Tasks, columns: Mapping[str, str] | None
) -> list[str]:
    """Return the taskname of each sample; a cache does not store the records, so they are read again."""
    if not isinstance(samples, SampleCache):
        return [_name(sample.record, sample.source, tasks) for sample in samples]
    names = {place: _name(record, place, tasks) for path in paths for place, record in read_records(path, columns)}
    return [names[source] for source in samples.sources()]


def _name(record: Mapping[str, object], where: str, tasks: Tasks) -> str:
    found = tasks.find(record, where)
    return str(record.get("taskname")) if isinstance(found, Problem) else found.taskname
