# SPDX-License-Identifier: Apache-2.0
"""The figures of squad_metric.json, which every scored evaluation has, whatever its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.registry import SQUAD, find

SUMMARY_KEYS = {"exact_match": "em", "f1": "f1"}
"""The key in summary.json of each of SQuAD's metrics, where the value is a fraction from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Score:
    """The metrics of one set of predictions."""

    values: Mapping[str, float]
    """The mean of each metric over all questions, by metric name."""
    total: int
    """Number of questions."""


def evaluate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Score:
    """Score each prediction against the right answers at the same index, with SQuAD's metrics.

    A question without an answer is right if its prediction is empty, as in SQuAD 2. Raises UserError when the numbers
    differ or when there is nothing to score.
    """
    _check(predictions, answers)
    pairs = zip(predictions, answers, strict=True)
    questions = [Answered(prediction=prediction, answers=right) for prediction, right in pairs]
    values = {}
    for metric in find(SQUAD):
        assert metric.scores is not None
        values[metric.name] = sum(metric.scores(questions)) / len(questions)
    return Score(values, len(questions))


def split_by_answer(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Return the scores of questions with an answer (HasAns) and without (NoAns); {} if all have one."""
    parts = {
        name: [pair for pair in zip(predictions, answers, strict=True) if bool(pair[1]) is has]
        for name, has in (("HasAns", True), ("NoAns", False))
    }
    if not parts["NoAns"]:
        return {}
    return {name: evaluate(*map(list, zip(*pairs, strict=True))) for name, pairs in parts.items() if pairs}


def _check(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(answers):
        what = f"{len(predictions):,} predictions, but {len(answers):,} questions have answers"
        fix = "use the data that the ground truth file was made from"
        raise UserError(Problem("ground truth", what, fix))
    if not predictions:
        raise UserError(Problem("ground truth", "no question to score", "name a file with questions"))
