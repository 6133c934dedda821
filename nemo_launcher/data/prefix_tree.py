# SPDX-License-Identifier: Apache-2.0
"""Which samples share a prefix: a tree over token sequences, in lists or in the one array of a cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

# Fewer common tokens than this are rather computed again ("context: The" is no context).
MIN_SHARED_TOKENS = 16

# Samples that share a prefix may come so many such places earlier than the shuffle says, to fill a global batch.
_PLACES_MOVED = 16

IntArray = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Samples that share their first tokens, and which of them share more."""

    depth: int
    """Tokens that all members share; for a single sample its length."""
    members: tuple[int, ...]
    """Indices of the samples, child by child."""
    children: tuple[PrefixTree, ...] = ()
    """Trees that share at least MIN_SHARED_TOKENS more, or of one sample; none for a single sample."""

    def num_tokens(self, above: int = 0) -> int:
        """Return how many tokens the samples have, common ones counted once, without their first `above`."""
        return self.depth - above + sum(child.num_tokens(self.depth) for child in self.children)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    same, different = 0, limit  # so many are the same, among so many is a different one
    while different - same > 1:
        middle = (same + different) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            different = middle
    return same


def prefix_trees(sequences: Sequence[list[int]]) -> list[PrefixTree]:
    """Return the trees of sequences; between two trees nothing is shared.

    Trees and their children come in the order of their first members.
    """
    order = PrefixOrder.of(sequences)
    return _trees(order.members.tolist(), order.shared.tolist(), MIN_SHARED_TOKENS, lambda index: len(sequences[index]))


def _trees(
    members: Sequence[int], shared: Sequence[int], minimum: int, length: Callable[[int], int]
) -> list[PrefixTree]:
    """Cut sorted samples where neighbours share fewer than `minimum` tokens, and make a tree of each part."""
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
    """Samples that share a prefix."""

    members: tuple[int, ...]
    """Indices of the samples."""
    prefix: int
    """Tokens that they share."""


def prefix_groups(tree: PrefixTree) -> list[PrefixGroup]:
    """Cut a tree into groups that together have the fewest tokens when each holds its prefix once.

    A sample alone is a group that is all prefix.
    """
    below = [group for child in tree.children for group in prefix_groups(child)]
    whole = PrefixGroup(tree.members, tree.depth)
    return below if below and sum(map(_saved, below)) > _saved(whole) else [whole]


def _saved(group: PrefixGroup) -> int:
    return group.prefix * (len(group.members) - 1)


@dataclass(frozen=True, slots=True)
class PrefixOrder:
    """All shared prefixes of a data set, in two numbers a sample."""

    members: IntArray
    """Indices of the samples, sorted by their tokens, so that those which share a prefix are neighbours."""
    shared: IntArray
    """Tokens that each has in common with the one before it; 0 for the first."""

    @classmethod
    def of(cls, sequences: Sequence[list[int]]) -> PrefixOrder:
        """Return the order of sequences of tokens."""
        order = sorted(range(len(sequences)), key=sequences.__getitem__)
        shared = [common_prefix(sequences[first], sequences[second]) for first, second in pairwise(order)]
        return cls(np.array(order, np.int64), np.array([0, *shared][: len(order)], np.int64))

    @classmethod
    def of_array(cls, tokens: IntArray, starts: IntArray, stops: IntArray) -> PrefixOrder:
        """Return the order of the sequences tokens[start:stop], in some numbers a sequence of memory.

        tokens: one array, none negative; it may be mapped from a file.
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
        """Return the samples in random order: trees are shuffled, and in each of them its children.

        One that would be cut by the end of a batch changes places with one of the next that would not, if there is any.
        """
        result: list[int] = []
        self._shuffle(0, len(self.members), MIN_SHARED_TOKENS, generator, batch_size, result)
        return result

    def _shuffle(
        self, start: int, stop: int, minimum: int, generator: torch.Generator, batch_size: int, result: list[int]
    ) -> None:
        """Put sorted samples behind the result, those together that share at least `minimum` tokens."""
        inner = np.flatnonzero(self.shared[start + 1 : stop] < minimum) + start + 1
        parts = list(pairwise([start, *inner.tolist(), stop]))
        waiting = deque(parts[part] for part in torch.randperm(len(parts), generator=generator).tolist())
        while waiting:
            room = batch_size - len(result) % batch_size
            sizes = [last - first for first, last in islice(waiting, _PLACES_MOVED)]
            chosen = 0
            if room < sizes[0] <= batch_size:  # rather the largest that fits
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
    """Return the indices of the sequences in sorted order; equal ones in the order of their indices.

    Sequences are compared chunk by chunk, and those alone that were equal so far. A chunk is compared as bytes: numbers
    with their highest byte first, 0 behind a sequence's end.
    """
    order = np.arange(len(starts))
    places = np.arange(len(starts))  # of `order`, whose sequences are not told apart yet; runs of equal ones
    runs = np.zeros(len(starts), dtype=np.int64)  # the run that each place belongs to
    depth = 0
    while len(places):
        rows = np.zeros((len(places), 1 + _CHUNK), dtype=">u4")
        rows[:, 0] = runs
        for first in range(0, len(places), 1 << 16):  # the positions of all rows at once would be eight bytes a token
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
        # Left over are runs of more than one sequence, unless all of its sequences have ended.
        left = (np.bincount(runs)[runs] > 1) & (rows[:, -1] != 0)
        places, runs = places[left], runs[left]
        depth += _CHUNK
    return order
