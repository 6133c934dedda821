# SPDX-License-Identifier: Apache-2.0
"""Nearly equal samples within each of several files and between them, for `nemo-launcher data`."""

from __future__ import annotations

from nemo_launcher.data.common_samples import all_tokens
from nemo_launcher.data.near_duplicates import NearDuplicates
from nemo_launcher.data.prefix_tree import IntArray
from nemo_launcher.data.samples import Sample

Places = list[tuple[str, str]]
"""The `file:line` of samples, each with that of the earlier one that it resembles."""


class NearSamples:
    """The samples of files, one file after the other. similarity: that of nearly equal ones (near_duplicates)."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._files: dict[str, tuple[NearDuplicates, list[str]]] = {}
        self._tokens: list[IntArray] = []
        self._sources: list[str] = []

    def add(self, sample: Sample) -> None:
        """Add a sample of the present file."""
        self._tokens.append(all_tokens(sample))
        self._sources.append(sample.source)

    def compared(self, file: str) -> tuple[Places, dict[str, Places]]:
        """End the present file; return its samples that are nearly equal, but not equal, to an earlier one of it.

        Also returns, by earlier file, the samples that are equal or nearly equal to one of that file.
        """
        known, tokens, sources = NearDuplicates(self._similarity), self._tokens, self._sources
        near = [(sources[found.place], sources[found.earlier]) for found in known.added(tokens)]
        common = {
            name: [(sources[found.place], earlier[found.earlier]) for found in other.common(tokens)]
            for name, (other, earlier) in self._files.items()
        }
        self._files[file] = known, sources
        self._tokens, self._sources = [], []
        return near, {name: places for name, places in common.items() if places}
