# SPDX-License-Identifier: Apache-2.0
"""The table of evaluation metrics, with their names in files, the summary and the final table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.squad_metrics import exact_match, f1


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric for predictions."""

    name: str
    """The key in squad_metric.json, where the value is a percentage."""
    summary_key: str
    """The key in summary.json, where the value is a fraction from 0 to 1."""
    title: str
    """The column heading in the final table."""
    score: Callable[[str, str], float]
    """Returns the score of (prediction, correct answer), from 0 to 1; the best of several correct answers counts."""


METRICS = (
    Metric(name="exact_match", summary_key="em", title="exact match", score=exact_match),
    Metric(name="f1", summary_key="f1", title="F1", score=f1),
)


@dataclass(frozen=True, slots=True)
class Score:
    """The metrics of one set of predictions."""

    values: Mapping[str, float]
    """The mean of each metric over all questions, by metric name."""
    total: int
    """Number of questions."""


def evaluate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Score:
    """Score each prediction against the correct answers at the same index.

    Raises UserError when the numbers differ, when there is nothing to score, or when a question has no answer.
    """
    _check(predictions, answers)
    pairs = list(zip(predictions, answers, strict=True))
    sums = {
        metric.name: sum(max(metric.score(prediction, answer) for answer in right) for prediction, right in pairs)
        for metric in METRICS
    }
    return Score({name: value / len(pairs) for name, value in sums.items()}, len(pairs))


def _check(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(answers):
        what = f"{len(predictions):,} predictions, but {len(answers):,} questions have answers"
        fix = "use the data that the ground truth file was made from"
        raise UserError(Problem("ground truth", what, fix))
    if not predictions:
        raise UserError(Problem("ground truth", "no question to score", "name a file with questions"))
    without = [position for position, right in enumerate(answers, start=1) if not right]
    if without:
        what = f"{len(without):,} questions have no answer, the first is question {without[0]:,}"
        raise UserError(Problem("ground truth", what, "leave them out of the data"))
