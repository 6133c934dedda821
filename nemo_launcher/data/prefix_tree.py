# SPDX-License-Identifier: Apache-2.0
"""Common prefixes of samples: a tree over token sequences, in lists or in the array of a cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

# Fewer common tokens are cheaper to recompute ("context: The" is not a context).
MIN_SHARED_TOKENS = 16

# How many groups of samples the shuffle looks ahead to find one that fills the rest of a global batch.
_PLACES_MOVED = 16

IntArray = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Samples with a common prefix, and subtrees of samples with longer ones."""

    depth: int
    """The number of tokens that all members share; for a single sample its length."""
    members: tuple[int, ...]
    """The indices of the samples, child by child."""
    children: tuple[PrefixTree, ...] = ()
    """Subtrees that share at least MIN_SHARED_TOKENS more, or have one sample; empty for a single sample."""

    def num_tokens(self, above: int = 0) -> int:
        """Return the number of tokens, common ones counted once, without the first `above`."""
        return self.depth - above + sum(child.num_tokens(self.depth) for child in self.children)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    same, different = 0, limit  # the first `same` tokens are equal, the first `different` are not
    while different - same > 1:
        middle = (same + different) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            different = middle
    return same


def prefix_trees(sequences: Sequence[list[int]]) -> list[PrefixTree]:
    """Return the trees of sequences; sequences of different trees share no prefix.

    Trees and their children are ordered by their first members.
    """
    order = PrefixOrder.of(sequences)
    return _trees(order.members.tolist(), order.shared.tolist(), MIN_SHARED_TOKENS, lambda index: len(sequences[index]))


def _trees(
    members: Sequence[int], shared: Sequence[int], minimum: int, length: Callable[[int], int]
) -> list[PrefixTree]:
    """Cut sorted samples where neighbors share fewer than `minimum` tokens; return a tree for each part."""
    cuts = [0, *(place for place in range(1, len(members)) if shared[place] < minimum), len(members)]
    parts = [(members[start:stop], shared[start:stop]) for start, stop in pairwise(cuts) if start < stop]
    return sorted((_tree(*part, length) for part in parts), key=lambda tree: tree.members[0])


def _tree(members: Sequence[int], shared: Sequence[int], length: Callable[[int], int]) -> PrefixTree:
    if len(members) == 1:
        return PrefixTree(length(members[0]), (members[0],))
    depth = min(shared[1:])
    children = tuple(_trees(members, shared, depth + MIN_SHARED_TOKENS, length))
    return PrefixTree(depth, tuple(member for child in children for member in child.members), children)


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Samples with a common prefix."""

    members: tuple[int, ...]
    """The indices of the samples."""
    prefix: int
    """The number of tokens that they share."""


def prefix_groups(tree: PrefixTree) -> list[PrefixGroup]:
    """Cut a tree into the groups with the fewest tokens in total if each group stores its prefix once.

    A single sample is a group that is all prefix.
    """
    below = [group for child in tree.children for group in prefix_groups(child)]
    whole = PrefixGroup(tree.members, tree.depth)
    return below if below and sum(map(_saved, below)) > _saved(whole) else [whole]


def _saved(group: PrefixGroup) -> int:
    return group.prefix * (len(group.members) - 1)


@dataclass(frozen=True, slots=True)
class PrefixOrder:
    """All common prefixes of a data set, as two numbers per sample."""

    members: IntArray
    """The indices of the samples, sorted by tokens, so that samples with a common prefix are neighbors."""
    shared: IntArray
    """The number of tokens that each sample shares with its predecessor; 0 for the first."""

    @classmethod
    def of(cls, sequences: Sequence[list[int]]) -> PrefixOrder:
        """Return the order of token sequences."""
        order = sorted(range(len(sequences)), key=sequences.__getitem__)
        shared = [common_prefix(sequences[first], sequences[second]) for first, second in pairwise(order)]
        return cls(np.array(order, np.int64), np.array([0, *shared][: len(order)], np.int64))

    @classmethod
    def of_array(cls, tokens: IntArray, starts: IntArray, stops: IntArray) -> PrefixOrder:
        """Return the order of the sequences tokens[start:stop], using only a few integers per sequence in memory.

        tokens: one array without negative ids, possibly mapped from a file.
        """
        order = _sorted_order(tokens, starts, stops)
        shared = np.zeros(len(order), np.int64)
        for place, (first, second) in enumerate(pairwise(order.tolist()), start=1):
            limit = min(stops[first] - starts[first], stops[second] - starts[second])
            left, right = (tokens[starts[index] : starts[index] + limit] for index in (first, second))
            different = left != right
            shared[place] = different.argmax() if different.any() else limit
        return cls(order, shared)

    def shuffled(self, generator: torch.Generator, batch_size: int) -> list[int]:
        """Return the samples in random order: trees are shuffled, and so are the children of each tree.

        A tree that the end of a batch would cut is swapped with one of the next trees that fits, if there is any.
        """
        result: list[int] = []
        self._shuffle(0, len(self.members), MIN_SHARED_TOKENS, generator, batch_size, result)
        return result

    def _shuffle(
        self, start: int, stop: int, minimum: int, generator: torch.Generator, batch_size: int, result: list[int]
    ) -> None:
        """Append sorted samples to the result; samples that share at least `minimum` tokens stay together."""
        inner = np.flatnonzero(self.shared[start + 1 : stop] < minimum) + start + 1
        parts = list(pairwise([start, *inner.tolist(), stop]))
        waiting = deque(parts[part] for part in torch.randperm(len(parts), generator=generator).tolist())
        while waiting:
            room = batch_size - len(result) % batch_size
            sizes = [last - first for first, last in islice(waiting, _PLACES_MOVED)]
            chosen = 0
            if room < sizes[0] <= batch_size:  # prefer the largest that fits
                chosen = max(range(len(sizes)), key=lambda place: sizes[place] if sizes[place] <= room else 0)
            first, last = waiting[chosen]
            del waiting[chosen]
            if last - first <= 1:
                result += self.members[first:last].tolist()
            else:
                deeper = int(self.shared[first + 1 : last].min()) + MIN_SHARED_TOKENS
                self._shuffle(first, last, deeper, generator, batch_size, result)


_CHUNK = 16  # tokens compared at a time


def _sorted_order(tokens: IntArray, starts: IntArray, stops: IntArray) -> IntArray:
    """Return the indices of the sequences in sorted order; equal sequences keep their order.

    Sequences are compared in chunks, and only those that are equal so far. Chunks are compared as bytes: big-endian
    numbers, with 0 after a sequence's end.
    """
    order = np.arange(len(starts))
    places = np.arange(len(starts))  # positions in `order` that are still ambiguous, in runs of equal sequences
    runs = np.zeros(len(starts), dtype=np.int64)  # the run of each place
    depth = 0
    while len(places):
        rows = np.zeros((len(places), 1 + _CHUNK), dtype=">u4")
        rows[:, 0] = runs
        for first in range(0, len(places), 1 << 16):  # limits the memory for positions
            part = slice(first, first + (1 << 16))
            positions = starts[order[places[part]], None] + np.arange(depth, depth + _CHUNK)
            inside = positions < stops[order[places[part]], None]
            rows[part, 1:][inside] = tokens[positions[inside]] + 1
        keys = rows.view(f"S{rows.itemsize * (1 + _CHUNK)}").ravel()
        by_key = np.argsort(keys, kind="stable")
        order[places] = order[places[by_key]]
        rows = rows[by_key]
        new_run = np.ones(len(places), dtype=bool)
        new_run[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        runs = np.cumsum(new_run) - 1
        # Runs of several sequences remain, unless all of their sequences have ended.
        left = (np.bincount(runs)[runs] > 1) & (rows[:, -1] != 0)
        places, runs = places[left], runs[left]
        depth += _CHUNK
    return order
