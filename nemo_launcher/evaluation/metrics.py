# SPDX-License-Identifier: Apache-2.0
"""The metrics of an evaluation: one entry each, which names it in files, the summary and the closing table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.squad_metrics import exact_match, f1


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How predictions are scored."""

    name: str
    """Its key in squad_metric.json, where it is a percentage."""
    summary_key: str
    """Its key in summary.json, where it is a fraction from 0 to 1."""
    title: str
    """The head of its column in the closing table."""
    score: Callable[[str, str], float]
    """The score of a prediction against one right answer, a fraction from 0 to 1; the best right answer counts."""


METRICS = (
    Metric(name="exact_match", summary_key="em", title="exact match", score=exact_match),
    Metric(name="f1", summary_key="f1", title="F1", score=f1),
)


@dataclass(frozen=True, slots=True)
class Score:
    """The metrics of one set of predictions."""

    values: Mapping[str, float]
    """The mean of each metric over all questions, by its name."""
    total: int
    """Questions."""


def evaluate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Score:
    """Score each prediction against the right answers of the same position.

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
        what = f"{len(predictions):,} predictions, but {len(answers):,} questions with answers"
        fix = "evaluate on the data that the ground truth file was made with"
        raise UserError(Problem("ground truth", what, fix))
    if not predictions:
        raise UserError(Problem("ground truth", "no question to score", "write the path of a file that has some"))
    without = [position for position, right in enumerate(answers, start=1) if not right]
    if without:
        what = f"{len(without):,} questions have no answer, the first is number {without[0]:,}"
        raise UserError(Problem("ground truth", what, "leave them out of the data"))
