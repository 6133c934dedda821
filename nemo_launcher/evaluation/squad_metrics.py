# SPDX-License-Identifier: Apache-2.0
"""The SQuAD v1.1 metric: exact match and F1 of normalised answers, the best over all right answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemo_launcher.errors import Problem, UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class SquadScore:
    """SQuAD's metrics, as means over all questions."""

    exact_match: float
    """Fraction from 0 to 1."""
    f1: float
    """Fraction from 0 to 1."""
    total: int
    """Questions."""


def evaluate(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> SquadScore:
    """Score each prediction against the right answers of the same position.

    Raises UserError when the numbers differ, when there is nothing to score, or when a question has no answer.
    """
    _check(predictions, answers)
    total = len(predictions)
    pairs = list(zip(predictions, answers, strict=True))
    return SquadScore(
        exact_match=sum(_best(exact_match, prediction, right) for prediction, right in pairs) / total,
        f1=sum(_best(f1, prediction, right) for prediction, right in pairs) / total,
        total=total,
    )


def normalize(text: str) -> str:
    """Return `text` in lower case, without punctuation (ASCII) and articles, its words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 when both are the same after normalisation, otherwise 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over normalised words; without a common word it is 0.0."""
    predicted_words, answer_words = normalize(prediction).split(), normalize(answer).split()
    num_common = (Counter(predicted_words) & Counter(answer_words)).total()
    if num_common == 0:
        return 0.0
    precision = num_common / len(predicted_words)
    recall = num_common / len(answer_words)
    return 2 * precision * recall / (precision + recall)


def _best(metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    return max(metric(prediction, answer) for answer in answers)


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
