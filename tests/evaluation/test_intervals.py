# SPDX-License-Identifier: Apache-2.0
"""Intervals against scipy's, their coverage, pairing, degenerate samples, and several seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import SITUATIONS, covered
from nemo_launcher.evaluation.intervals import (
    interval_of,
    over_seeds,
    paired_difference,
    percentiles,
    resampled,
    student,
    sums_of_groups,
    wilson,
)
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.registry import find

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("successes", "count"), [(0, 30), (1, 30), (17, 30), (30, 30), (0, 1), (199, 200)])
def test_wilson_is_scipys(successes: int, count: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(successes, count).proportion_ci(method="wilson")
    found = wilson(successes, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_students_quantile_is_scipys() -> None:
    from scipy.stats import t

    for degrees in (1, 2, 3, 4, 9, 29, 10_000):
        assert student(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)


def test_resamples_are_drawn_with_replacement_and_always_the_same() -> None:
    sums = np.arange(30.0).reshape(10, 3)
    draws = resampled(sums, resamples=4000)
    assert draws.shape == (4000, 3)
    assert (resampled(sums, resamples=4000) == draws).all()
    assert draws.mean(axis=0) == pytest.approx(sums.sum(axis=0), rel=0.02)
    variance = 10 * sums.var(axis=0)  # of a sum of 10 draws
    assert draws.var(axis=0) == pytest.approx(variance, rel=0.1)


def test_questions_of_a_group_are_resampled_together() -> None:
    scores = np.repeat([0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.25, 1.0], 5)
    statistics, groups = np.stack([scores, np.ones_like(scores)], axis=-1), np.repeat(np.arange(8), 5)
    assert sums_of_groups(statistics, groups)[:, 0].tolist() == [0, 5, 5, 2.5, 0, 5, 1.25, 5]
    widths = []
    for of in (groups, np.arange(40)):
        sums = sums_of_groups(statistics, of)
        draws = resampled(sums)
        interval = percentiles(draws[:, 0] / draws[:, 1], len(sums))
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[0] > 1.8 * widths[1]  # sqrt(5) without the correction for few groups


def test_all_right_and_all_wrong_have_an_interval() -> None:
    for name in ("accuracy", "macro_f1", "exact_match", "f1"):
        metric = find([name])[0]
        for prediction, share in (("x", 1.0), ("z", 0.0)):
            questions = [Answered(prediction=prediction, answers=["x"])] * 20
            statistics = metric.statistics(questions)
            for groups in (range(20), [0] * 10 + [1] * 10):
                draws = resampled(sums_of_groups(statistics, groups))
                assert interval_of(metric, statistics, list(groups), draws) == wilson(
                    share * len(set(groups)), len(set(groups))
                )


def test_one_group_has_no_interval() -> None:
    assert percentiles(np.array([0.5] * 100), 1) is None
    found = paired_difference([0.5, 0.25], [0.25, 0.5], [3, 3])
    assert math.isnan(found.low)
    assert not found.is_decided


# --- differences --------------------------------------------------------------------------------------------------


def test_pairs_decide_where_two_intervals_overlap() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    a, b = (np.clip(hard + rng.normal(shift, 0.05, 200), 0.01, 0.99) for shift in (0.03, 0.0))
    found = paired_difference(a.tolist(), b.tolist())
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))
    assert found.is_decided
    assert 0 < found.low < found.value < found.high
    assert not paired_difference(a.tolist(), rng.permutation(b).tolist()).is_decided
    turned = paired_difference(b.tolist(), a.tolist())
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.003)


def test_pairs_of_right_and_wrong_have_the_interval_of_agresti_and_min() -> None:
    """Their formula by hand, for 12 wins, 2 losses and 26 ties."""
    a, b = [1.0] * 12 + [0.0] * 2 + [1.0] * 26, [0.0] * 12 + [1.0] * 2 + [1.0] * 26
    found = paired_difference(a, b)
    assert found.value == 0.25
    p12, p21 = 12.5 / 42, 2.5 / 42
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 42)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-6)
    assert found.is_decided


def test_equal_and_perfect_scores_are_not_certain() -> None:
    same = paired_difference([1.0, 0.0, 1.0] * 10, [1.0, 0.0, 1.0] * 10)
    assert same.value == 0
    assert same.low < -0.01 < 0.01 < same.high
    grouped = paired_difference([0.5] * 30, [0.5] * 30, list(range(15)) * 2)
    assert grouped.low < -0.01 < 0.01 < grouped.high
    best = paired_difference([1.0] * 30, [0.0] * 30, list(range(15)) * 2)
    assert best.value == 1
    assert 0.5 < best.low < 0.9
    assert best.is_decided


def test_scores_that_cannot_be_paired_are_refused() -> None:
    for a, b in (([], []), ([1.0], [1.0, 0.0])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_difference(a, b)


# --- seeds and coverage -------------------------------------------------------------------------------------------


def test_several_seeds_give_mean_spread_and_best() -> None:
    from scipy.stats import t

    values = [0.7, 0.9, 0.8]
    found = over_seeds(values)
    assert (found.mean, found.deviation, found.best, found.best_place) == pytest.approx((0.8, 0.1, 0.9, 1))
    low, high = t.interval(0.95, 2, loc=0.8, scale=0.1 / math.sqrt(3))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=1e-6)
    assert over_seeds(values, higher_is_better=False).best_place == 0
    single = over_seeds([0.5])
    assert (single.best, single.interval) == (0.5, None)
    assert math.isnan(single.deviation)
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_intervals_cover_the_truth(situation: object) -> None:
    """A smaller form of benchmarks/interval_coverage.py: 95% of 200 is 190, and 4 standard deviations are 12."""
    assert 176 <= covered(situation, count=30, evaluations=200) <= 200
