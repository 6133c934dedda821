"""Which samples share a prefix: groups of token sequences, in lists or in the one array of a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Below this many common tokens two prompts are rather treated as unrelated ("context: The" is no context).
MIN_SHARED_TOKENS = 16

IntArray = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Samples (indices) that share their first `prefix` tokens."""

    members: tuple[int, ...]
    prefix: int


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    limit = min(len(first), len(second))
    for position in range(limit):
        if first[position] != second[position]:
            return position
    return limit


def group_by_prefix(sequences: Sequence[list[int]]) -> list[PrefixGroup]:
    """Group token sequences by shared prefixes; groups and their members in the order of first appearance.

    In sorted order, sequences that share a prefix are neighbours. A sequence joins the group before it when the tokens
    it saves outnumber those that the others lose by a shorter prefix.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index])
    return _groups(
        order,
        lambda index: len(sequences[index]),
        lambda first, second: common_prefix(sequences[first], sequences[second]),
    )


def group_array_by_prefix(tokens: IntArray, starts: IntArray, stops: IntArray) -> list[PrefixGroup]:
    """Return what `group_by_prefix` gives for the sequences tokens[start:stop], in some numbers a sequence of memory.

    tokens: one array, none negative; it may be mapped from a file.
    """

    def shared(first: int, second: int) -> int:
        limit = min(stops[first] - starts[first], stops[second] - starts[second])
        left, right = (tokens[starts[index] : starts[index] + limit] for index in (first, second))
        different = left != right
        return int(different.argmax()) if different.any() else int(limit)

    order = _sorted_order(tokens, starts, stops).tolist()
    return _groups(order, lambda index: int(stops[index] - starts[index]), shared)


def _groups(
    order: Sequence[int], length: Callable[[int], int], shared_by: Callable[[int, int], int]
) -> list[PrefixGroup]:
    """Group sequences by their sorted order, their lengths and the tokens that two of them share."""
    groups: list[PrefixGroup] = []
    members: list[int] = []
    prefix = 0
    for index in order:
        if members:
            shared = min(prefix, shared_by(members[-1], index))
            if shared >= MIN_SHARED_TOKENS and shared > (prefix - shared) * (len(members) - 1):
                members.append(index)
                prefix = shared
                continue
            groups.append(_group(members, prefix))
        members, prefix = [index], length(index)
    if members:
        groups.append(_group(members, prefix))
    return sorted(groups, key=lambda group: group.members[0])


def _group(members: list[int], prefix: int) -> PrefixGroup:
    return PrefixGroup(tuple(sorted(members)), prefix if len(members) > 1 else 0)


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


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """Groups of samples in two arrays: the members of all groups, one behind the other, and each group's first place.

    bounds: the places in `members` at which groups begin, and its length at the end.
    """

    members: IntArray
    bounds: IntArray

    @classmethod
    def of(cls, groups: Sequence[PrefixGroup]) -> GroupOrder:
        """Return groups in this form."""
        sizes = [len(group.members) for group in groups]
        members = np.fromiter((index for group in groups for index in group.members), np.int64, sum(sizes))
        return cls(members, np.cumsum([0, *sizes]))

    @classmethod
    def of_each_alone(cls, count: int) -> GroupOrder:
        """Return a group for each of `count` samples."""
        return cls(np.arange(count), np.arange(count + 1))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, group: int) -> list[int]:
        members: list[int] = self.members[self.bounds[group] : self.bounds[group + 1]].tolist()
        return members

    def __iter__(self) -> Iterator[list[int]]:
        return (self[group] for group in range(len(self)))
