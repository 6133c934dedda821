# SPDX-License-Identifier: Apache-2.0
"""Summaries of many whole numbers: quantiles, and a histogram in text. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ROWS = 10
_BAR_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Numbers that describe a distribution."""

    minimum: int
    """The smallest value."""
    median: int
    """The value that half of all values do not exceed."""
    percentile_95: int
    """The value that 95% of all values do not exceed."""
    maximum: int
    """The largest value."""

    @classmethod
    def of(cls, values: Sequence[int]) -> Quantiles:
        """Return the quantiles of at least one value; each is one of the values (the nearest-rank method)."""
        ordered = sorted(values)

        def at(share: float) -> int:
            return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

        return cls(ordered[0], at(0.5), at(0.95), ordered[-1])

    def __str__(self) -> str:
        return f"{self.minimum:,} min, {self.median:,} median, {self.percentile_95:,} 95%, {self.maximum:,} max"


@dataclass(frozen=True, slots=True)
class Bin:
    """The values of one row of a histogram."""

    first: int
    """The smallest value that it counts."""
    last: int
    """The largest value that it counts."""
    count: int
    """How many values there are."""


def bins(values: Sequence[int]) -> list[Bin]:
    """Return about ten bins of equal width, which is 1, 2 or 5 times a power of ten, from the smallest value on."""
    lowest, highest = min(values), max(values)
    width = _round_width((highest - lowest + 1) / _ROWS)
    start = lowest // width * width
    counts = [0] * ((highest - start) // width + 1)
    for value in values:
        counts[(value - start) // width] += 1
    return [Bin(start + place * width, start + (place + 1) * width - 1, count) for place, count in enumerate(counts)]


def histogram(rows: Sequence[Bin]) -> list[str]:
    """Return a line for each bin, with a bar of at most 40 characters."""
    labels = [f"{row.first:,}" if row.first == row.last else f"{row.first:,}-{row.last:,}" for row in rows]
    width, most = max(map(len, labels)), max(row.count for row in rows)
    lines = []
    for label, row in zip(labels, rows, strict=True):
        bar = "#" * max(row.count > 0, round(_BAR_CHARACTERS * row.count / most))
        lines.append(f"{label:>{width}} {bar:<{_BAR_CHARACTERS}} {row.count:,}")
    return lines


def _round_width(width: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, ... that is at least `width`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= width:
                return factor * power
        power *= 10
