# SPDX-License-Identifier: Apache-2.0
"""Samples that are nearly equal: those that share most of their runs of tokens.

The similarity of two samples is the Jaccard index of their sets of runs of RUN tokens. MinHash and locality-sensitive
hashing (the library datasketch; Broder 1997) find candidates, which are then compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_launcher.data.prefix_tree import IntArray

RUN = 5
"""The number of tokens in a run."""
_HASHES = 128
_MISSES_WEIGH = 0.9  # candidates are compared, so that a wrong one costs time and a missing one a find
_MAX_CANDIDATES = 50
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Similar:
    """A sample that is nearly equal to an earlier one."""

    place: int
    """Its number, from 0."""
    earlier: int
    """The number of the earlier one, in the set that was added."""


class NearDuplicates:
    """The distinct samples of a set, for comparison with others. threshold: the similarity of nearly equal ones."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH  # optional, and takes half a second

        self._threshold = threshold
        self._sketch = MinHash(num_perm=_HASHES, hashfunc=int)
        weights = (1 - _MISSES_WEIGH, _MISSES_WEIGH)
        self._index = MinHashLSH(threshold=min(threshold, 0.99), num_perm=_HASHES, weights=weights)
        self._runs: dict[int, NDArray[np.uint32]] = {}

    def added(self, samples: Iterable[IntArray]) -> list[Similar]:
        """Add the token ids of samples; return those that are nearly equal, but not equal, to an earlier one."""
        found, equal = [], set[bytes]()
        for place, tokens in enumerate(samples):
            if tokens.tobytes() in equal:
                continue
            equal.add(tokens.tobytes())
            runs, sketch = self._sketched(tokens)
            earlier = self._similar(runs, sketch)
            if earlier is None:
                self._index.insert(place, sketch)
                self._runs[place] = runs
            else:
                found.append(Similar(place, earlier))
        return found

    def common(self, samples: Iterable[IntArray]) -> Iterator[Similar]:
        """Yield the samples of another set that are equal or nearly equal to one that was added."""
        for place, tokens in enumerate(samples):
            earlier = self._similar(*self._sketched(tokens))
            if earlier is not None:
                yield Similar(place, earlier)

    def _sketched(self, tokens: IntArray) -> tuple[NDArray[np.uint32], Any]:
        runs, sketch = runs_of(tokens), self._sketch.copy()
        sketch.update_batch(runs.tolist())
        return runs, sketch

    def _similar(self, runs: NDArray[np.uint32], sketch: Any) -> int | None:
        """Return the most similar sample that was added, if it is similar enough."""
        candidates = sorted(self._index.query(sketch))[:_MAX_CANDIDATES]
        best = max(candidates, key=lambda place: similarity(runs, self._runs[place]), default=None)
        if best is None or similarity(runs, self._runs[best]) < self._threshold:
            return None
        return int(best)


def runs_of(tokens: Sequence[int] | IntArray) -> NDArray[np.uint32]:
    """Return the hashes of the distinct runs of tokens in a sample; a shorter sample is a single run."""
    values = np.asarray(tokens).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(values, min(RUN, len(values))) if len(values) else values[None]
    hashed = np.zeros(len(windows), np.uint64)
    for column in windows.T:
        hashed = (hashed ^ (column + np.uint64(1))) * _FACTOR
        hashed ^= hashed >> np.uint64(29)
    return np.unique((hashed >> np.uint64(32)).astype(np.uint32))


def similarity(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """Return the Jaccard index of two sets of runs."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
