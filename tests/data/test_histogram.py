# SPDX-License-Identifier: Apache-2.0
"""Quantiles and histograms, compared with numpy's."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nemo_launcher.data.histogram import Quantiles, bins, histogram

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 1000])
def test_quantiles_are_those_of_the_nearest_rank(count: int) -> None:
    values = random.Random(count).choices(range(5000), k=count)
    found = Quantiles.of(values)
    expected = np.quantile(values, [0, 0.5, 0.95, 1], method="inverted_cdf")
    assert [found.minimum, found.median, found.percentile_95, found.maximum] == expected.tolist()


@pytest.mark.parametrize(("low", "high"), [(7, 7), (0, 9), (3, 250), (900, 90_000)])
def test_each_value_is_in_one_bin_and_lines_are_narrow(low: int, high: int) -> None:
    values = [low, high, *random.Random(1).choices(range(low, high + 1), k=500)]
    rows = bins(values)
    assert len(rows) <= 12
    edges = [row.first for row in rows] + [rows[-1].last + 1]
    assert [row.count for row in rows] == np.histogram(values, edges)[0].tolist()
    lines = histogram(rows)
    assert max(map(len, lines)) <= 78
    assert all(("#" in line) == (row.count > 0) for line, row in zip(lines, rows, strict=True))
