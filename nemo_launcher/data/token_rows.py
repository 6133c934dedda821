# SPDX-License-Identifier: Apache-2.0
"""The distinct token positions of a data set, numbered: a table with a row for each holds what they share once.

In a causal stack, the hidden state of a token depends on the tokens before it, so samples share a row for each token of
a common prefix. In a bidirectional stack it depends on the whole sequence, so only equal sequences share rows.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.prefix_tree import IntArray, PrefixOrder
from nemo_launcher.data.samples import Sample


class TokenRows:
    """The rows of each sample's tokens, with a few integers per sample in memory.

    order: the samples' indices, in which each sample's own rows, that no sample before it has, follow those of its
    predecessor. digest: a hash of the sequences. num_rows: of the table.
    """

    def __init__(self, samples: Sequence[Sample], *, is_causal: bool) -> None:
        """Number the tokens that run in training: of a causal stack, all of a sample but the last."""
        lengths, self.digest = _lengths_and_digest(_input_arrays(samples))
        prefixes = _prefix_order(samples)
        self.order: IntArray = prefixes.members
        runs = (lengths - 1 if is_causal else lengths)[self.order]
        before = np.concatenate(([0], runs[:-1]))[: len(runs)]
        # In sorted order the samples with a common prefix are neighbors, and those that end within it come first.
        shared = np.minimum(np.minimum(prefixes.shared, runs), before)
        if not is_causal:
            shared = np.where((shared == runs) & (runs == before), runs, 0)
        ends = np.cumsum(runs - shared)
        self.num_rows = int(ends[-1]) if len(ends) else 0
        self._shared, self._starts, self._lengths = shared, ends - (runs - shared), runs
        self._places = np.empty(len(runs), np.int64)
        self._places[self.order] = np.arange(len(runs))
        self._above = _last_smaller(shared.tolist())

    def own(self, sample: int) -> tuple[int, int]:
        """Return the first of a sample's own rows, and their number."""
        place = self._places[sample]
        return int(self._starts[place]), int(self._lengths[place] - self._shared[place])

    def of(self, sample: int) -> IntArray:
        """Return the rows of a sample's tokens, [tokens]."""
        place = int(self._places[sample])
        stop = int(self._lengths[place])
        rows = np.empty(stop, np.int64)
        while stop:
            shared, start = int(self._shared[place]), int(self._starts[place])
            rows[shared:stop] = np.arange(start, start + stop - shared)
            place, stop = int(self._above[place]), shared
        return rows


def _last_smaller(numbers: Sequence[int]) -> IntArray:
    """Return for each number the index of the last smaller one before it; -1 for none."""
    found = array("q")
    open_places: list[int] = []
    for place, number in enumerate(numbers):
        while open_places and numbers[open_places[-1]] >= number:
            open_places.pop()
        found.append(open_places[-1] if open_places else -1)
        open_places.append(place)
    return np.frombuffer(found, np.int64) if found else np.empty(0, np.int64)


def _input_arrays(samples: Sequence[Sample]) -> Iterable[IntArray]:
    if isinstance(samples, SampleCache):
        return samples.input_arrays()
    return (np.array(sample.input_ids, np.int32) for sample in samples)


def _lengths_and_digest(sequences: Iterable[IntArray]) -> tuple[IntArray, str]:
    lengths, digest = array("q"), hashlib.sha256(sys.byteorder.encode())
    for tokens in sequences:
        lengths.append(len(tokens))
        digest.update(len(tokens).to_bytes(8, "little"))
        digest.update(tokens.astype(np.int32).tobytes())
    return np.array(lengths, np.int64), digest.hexdigest()


def _prefix_order(samples: Sequence[Sample]) -> PrefixOrder:
    if isinstance(samples, SampleCache):
        return samples.prefixes or samples.find_prefixes()
    return PrefixOrder.of([sample.input_ids for sample in samples])
