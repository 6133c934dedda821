# SPDX-License-Identifier: Apache-2.0
"""How often the 95% intervals of an evaluation contain the truth, in simulated evaluations whose truth is known.

    python -m benchmarks.interval_coverage

Each row simulates 1,000 evaluations of 30 and of 200 questions and counts the intervals with the true value in them.
Of grouped questions, three or four are about the same text, which makes their scores alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_launcher.evaluation.intervals import interval_of, paired_difference, resampled, sums_of_groups
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.registry import find

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, NDArray[np.int64]], Array]
"""Draws the scores of questions: of (generator, number of groups, group of each question)."""

GROUP_SIZES = {30: 3, 200: 4}
"""Questions about a text, by the number of questions."""
_LABELS = 5


@dataclass(frozen=True, slots=True)
class Situation:
    """A kind of evaluation."""

    name: str
    """What is measured."""
    covers: Callable[[np.random.Generator, NDArray[np.int64]], bool]
    """Simulates one evaluation of questions with these groups; returns whether its interval contains the truth."""
    is_grouped: bool
    """Whether several questions are about the same text."""


def right_or_wrong(share: float, likeness: float) -> Draw:
    """Return the draw of scores of 0 and 1; likeness: the correlation of two questions about the same text."""

    def draw(rng: np.random.Generator, num_groups: int, groups: NDArray[np.int64]) -> Array:
        scale = (1 - likeness) / likeness
        of_groups = rng.beta(share * scale, (1 - share) * scale, num_groups)
        return (rng.random(len(groups)) < of_groups[groups]).astype(np.float64)

    return draw


def like_f1(rng: np.random.Generator, num_groups: int, groups: NDArray[np.int64]) -> Array:
    """Draw scores with a mean of 0.625: a quarter between 0 and 1, half of all exactly 1, as F1 has them."""
    easy = rng.beta(4, 2, num_groups)[groups]
    luck, between = rng.random(len(groups)), rng.random(len(groups))
    return np.where(luck < 0.25, between, (luck < 0.25 + 0.75 * easy).astype(np.float64))


def _mean(name: str, metric: str, draw: Draw, truth: float, *, is_grouped: bool) -> Situation:
    of_metric = find([metric])[0]

    def covers(rng: np.random.Generator, groups: NDArray[np.int64]) -> bool:
        scores = draw(rng, int(groups.max()) + 1, groups)
        statistics = np.stack([scores, np.ones_like(scores)], axis=-1)
        interval = interval_of(of_metric, statistics, groups.tolist(), resampled(sums_of_groups(statistics, groups)))
        return interval is not None and interval.low <= truth <= interval.high

    return Situation(name, covers, is_grouped)


def _difference(name: str, first: Draw, second: Draw, truth: float, *, is_grouped: bool) -> Situation:
    def covers(rng: np.random.Generator, groups: NDArray[np.int64]) -> bool:
        num_groups = int(groups.max()) + 1
        a, b = (draw(rng, num_groups, groups) for draw in (first, second))
        shared = rng.random(len(groups)) < 0.5  # on half of the questions both models give the same answer
        found = paired_difference(np.where(shared, b, a).tolist(), b.tolist(), groups.tolist())
        return found.low <= truth / 2 <= found.high

    return Situation(name, covers, is_grouped)


def _classification(name: str, right: float) -> Situation:
    """Return the macro-F1 of labels that are right with a chance of `right`, and otherwise any label."""
    metric, names = find(["macro_f1"])[0], [f"label {number}" for number in range(_LABELS)]
    share = right + (1 - right) / _LABELS
    truth = share  # of balanced labels, precision and recall of each are equal

    def covers(rng: np.random.Generator, groups: NDArray[np.int64]) -> bool:
        labels, others = rng.integers(0, _LABELS, (2, len(groups)))
        predicted = np.where(rng.random(len(groups)) < right, labels, others)
        questions = [Answered(prediction=names[p], answers=[names[t]]) for p, t in zip(predicted, labels, strict=True)]
        statistics = metric.statistics(questions)
        interval = interval_of(metric, statistics, groups.tolist(), resampled(sums_of_groups(statistics, groups)))
        return interval is not None and interval.low <= truth <= interval.high

    return Situation(name, covers, is_grouped=False)


def _alone(share: float) -> Draw:
    def draw(rng: np.random.Generator, num_groups: int, groups: NDArray[np.int64]) -> Array:
        return (rng.random(len(groups)) < share).astype(np.float64)

    return draw


SITUATIONS = (
    _mean("accuracy 60%", "accuracy", _alone(0.6), 0.6, is_grouped=False),
    _mean("accuracy 85%", "accuracy", _alone(0.85), 0.85, is_grouped=False),
    _mean("accuracy 60%, grouped", "accuracy", right_or_wrong(0.6, 0.3), 0.6, is_grouped=True),
    _mean("accuracy 75%, grouped", "accuracy", right_or_wrong(0.75, 0.3), 0.75, is_grouped=True),
    _mean("F1 62.5%", "f1", like_f1, 0.625, is_grouped=False),
    _mean("F1 62.5%, grouped", "f1", like_f1, 0.625, is_grouped=True),
    _classification("macro-F1 76%", 0.7),
    _difference("accuracy, paired difference", _alone(0.8), _alone(0.6), 0.2, is_grouped=False),
    _difference("F1, paired difference", like_f1, like_f1, 0.0, is_grouped=False),
    _difference(
        "accuracy, paired difference, grouped",
        right_or_wrong(0.8, 0.2),
        right_or_wrong(0.6, 0.2),
        0.2,
        is_grouped=True,
    ),
)
"""The simulated kinds of evaluations."""


def covered(situation: Situation, *, count: int, evaluations: int) -> int:
    """Return how many of the intervals of simulated evaluations of `count` questions contain the truth."""
    size = GROUP_SIZES[count] if situation.is_grouped else 1
    groups = np.arange(count, dtype=np.int64) // size
    seeds = np.random.SeedSequence(2026).spawn(evaluations)
    return sum(situation.covers(np.random.default_rng(seed), groups) for seed in seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--evaluations", type=int, default=1000, help="simulated evaluations for each figure")
    evaluations: int = parser.parse_args().evaluations
    print(f"| {evaluations:,} evaluations | n = 30 | n = 200 |\n| --- | --- | --- |")
    for situation in SITUATIONS:
        shares = [covered(situation, count=count, evaluations=evaluations) / evaluations for count in GROUP_SIZES]
        print(f"| {situation.name} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()
