# SPDX-License-Identifier: Apache-2.0
"""Intervals of 95% for figures, paired differences between two models, and the spread over seeds.

Questions about the same text are not independent, so groups of questions are resampled, not questions. Every metric is
a function of sums over questions (metrics/metric.py): a resample sums the groups' statistics, and one set of resamples
serves all metrics and both models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nemo_launcher.evaluation.metrics.metric import FloatArray, Metric

CONFIDENCE = 0.95
"""The confidence of all intervals."""
RESAMPLES = 2000
"""The number of bootstrap resamples."""
SEED = 1234
"""The seed of the resamples: the same questions always have the same intervals."""

_CHUNK = 2**22  # draws at a time, 32 MiB
_Z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    """Its lower end."""
    high: float
    """Its upper end."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference between two models on the same questions: the first minus the second."""

    value: float
    """The difference."""
    low: float
    """The lower end of its interval; NaN without an interval."""
    high: float
    """The upper end; NaN without an interval."""

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def wilson(successes: float, count: int) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927), also of 0 and all successes.

    successes: need not be whole, as for the mean of scores from 0 to 1.
    """
    share, spread = successes / count, _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return Interval(low, 1.0 if successes >= count else min(1.0, middle + half))


def sums_of_groups(statistics: FloatArray, groups: Sequence[int]) -> FloatArray:
    """Return the sums of statistics [questions, k] over the questions of each group, [groups, k]."""
    places = np.unique(np.asarray(groups, dtype=np.int64), return_inverse=True)[1]
    sums = np.zeros((int(places.max()) + 1, statistics.shape[1]))
    np.add.at(sums, places, statistics)
    return sums


def resampled(sums: FloatArray, *, resamples: int = RESAMPLES, seed: int = SEED) -> FloatArray:
    """Return the sums over groups drawn with replacement: [groups, k] -> [resamples, k]."""
    rng, num_groups = np.random.default_rng(seed), len(sums)
    rows = max(1, _CHUNK // num_groups)
    parts = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        draws = rng.integers(0, num_groups, size=(count, num_groups))
        draws += np.arange(count)[:, None] * num_groups
        times = np.bincount(draws.ravel(), minlength=count * num_groups).reshape(count, num_groups)
        parts.append(times.astype(np.float64) @ sums)
    return np.concatenate(parts)


def percentiles(values: FloatArray, num_groups: int) -> Interval | None:
    """Return the interval of resampled figures; None with fewer than two groups or if too many are undefined.

    The expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3):
    percentiles are widened as Student's t and the factor n / (n - 1) of the variance widen a normal interval.
    """
    finite = values[np.isfinite(values)]
    if num_groups < 2 or len(finite) < 0.9 * len(values):
        return None
    tail = NormalDist().cdf(-math.sqrt(num_groups / (num_groups - 1)) * student(num_groups - 1))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high))


def student(degrees: int) -> float:
    """Return the 97.5% quantile of Student's t (Abramowitz and Stegun, 26.7.5; exact for 1 and 2 degrees)."""
    p = 1 - (1 - CONFIDENCE) / 2
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, start=1))


def interval_of(metric: Metric, statistics: FloatArray, groups: Sequence[int], draws: FloatArray) -> Interval | None:
    """Return the interval of a metric; None if there are too few groups.

    statistics: [questions, k]. draws: their resampled sums, [resamples, k]. A share of independent questions has
    Wilson's interval. So has any share of 0 or 1, of which resamples show no spread, with the number of groups.
    """
    value, num_groups = float(metric.figure(statistics.sum(axis=0))), len(set(groups))
    if metric.kind == "proportion" and num_groups == len(groups):
        return wilson(float(statistics[:, 0].sum()), len(groups))
    if metric.is_share and value in _EXTREMES:
        return wilson(value * num_groups, num_groups)
    return percentiles(metric.figure(draws), num_groups)


_EXTREMES = (0.0, 1.0)


def paired_difference(
    scores_a: Sequence[float], scores_b: Sequence[float], groups: Sequence[int] | None = None
) -> Difference:
    """Return the mean difference a - b of two models' scores of the same questions, with its interval.

    scores: from 0 to 1. groups: the group of each question; None if questions are independent. Independent scores of 0
    and 1 have the adjusted Wald interval of Agresti and Min (2005). Raises ValueError if the numbers differ or there
    are no questions.
    """
    if len(scores_a) != len(scores_b) or not len(scores_a):
        raise ValueError(f"{len(scores_a)} and {len(scores_b)} scores cannot be paired")
    pair = np.stack([np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)], axis=-1)
    count = len(pair)
    of_groups = range(count) if groups is None else groups
    if len(set(of_groups)) == count and np.isin(pair, _EXTREMES).all():
        return _of_pairs(int((pair[:, 0] > pair[:, 1]).sum()), int((pair[:, 0] < pair[:, 1]).sum()), count)
    sums = sums_of_groups(np.concatenate([pair, np.ones((count, 1))], axis=1), of_groups)
    draws = resampled(sums)
    of_draws = draws[:, :2] / draws[:, 2:]
    first, second = pair.mean(axis=0).tolist()
    return difference_of(first, second, of_draws[:, 0] - of_draws[:, 1], len(sums))


def difference_of(
    first: float, second: float, draws: FloatArray, num_groups: int, *, are_shares: bool = True
) -> Difference:
    """Return the difference of two figures of the same questions, with the interval of its resampled values.

    Equal scores have the interval of as many equal pairs as there are groups. If a share is 0 or 1, of which resamples
    show no spread, the interval combines those of both (Newcombe 1998, method 10), with the number of groups.
    """
    value = first - second
    if are_shares and (first in _EXTREMES or second in _EXTREMES):
        a, b = (wilson(share * num_groups, num_groups) for share in (first, second))
        low = value - math.hypot(first - a.low, b.high - second)
        return Difference(value, low, value + math.hypot(a.high - first, second - b.low))
    if are_shares and num_groups > 1 and not draws.any():  # the same scores
        return _of_pairs(0, 0, num_groups)
    interval = percentiles(draws, num_groups)
    return Difference(value, math.nan, math.nan) if interval is None else Difference(value, interval.low, interval.high)


def _of_pairs(wins: int, losses: int, count: int) -> Difference:
    """Return the difference of two paired proportions. wins, losses: pairs in which only the first, second is right."""
    first, second = (wins + 0.5) / (count + 2), (losses + 0.5) / (count + 2)
    half = _Z * math.sqrt((first + second - (first - second) ** 2) / (count + 2))
    middle = first - second
    return Difference((wins - losses) / count, max(-1.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of one figure over several seeds."""

    mean: float
    """Their mean."""
    deviation: float
    """Their standard deviation, with n - 1; NaN for a single value."""
    best: float
    """The best of them."""
    best_place: int
    """The index of the best."""
    interval: Interval | None
    """The interval of the mean over seeds, by Student's t; None for a single value."""


def over_seeds(values: Sequence[float], *, higher_is_better: bool = True) -> Spread:
    """Return mean, spread and best of a figure over several seeds. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    place = (max if higher_is_better else min)(range(len(values)), key=values.__getitem__)
    middle = mean(values)
    if len(values) == 1:
        return Spread(middle, math.nan, values[place], place, None)
    deviation = stdev(values)
    half = student(len(values) - 1) * deviation / math.sqrt(len(values))
    return Spread(middle, deviation, values[place], place, Interval(middle - half, middle + half))
