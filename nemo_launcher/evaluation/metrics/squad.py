# SPDX-License-Identifier: Apache-2.0
"""SQuAD's metrics: exact match and F1 of normalised answers; a question without an answer counts as in SQuAD 2."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from nemo_launcher.evaluation.metrics.metric import Answered, Metric, best_of, mean_of, ratio
from nemo_launcher.evaluation.metrics.registry import register

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return `text` in lower case, without ASCII punctuation and articles, with single spaces between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both are equal after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over normalised words; 0.0 without a common word."""
    predicted_words, answer_words = normalize(prediction).split(), normalize(answer).split()
    num_common = (Counter(predicted_words) & Counter(answer_words)).total()
    if num_common == 0:
        return 0.0
    precision = num_common / len(predicted_words)
    recall = num_common / len(answer_words)
    return 2 * precision * recall / (precision + recall)


def goes_on(prediction: str, answers: Sequence[str]) -> bool:
    """Return whether a prediction is no right answer, but begins with one, after normalisation."""
    words = normalize(prediction).split()
    right = [normalize(answer).split() for answer in answers]
    return words not in right and any(answer and words[: len(answer)] == answer for answer in right)


def _as_squad_2(score: Callable[[str, str], float]) -> Callable[[Sequence[Answered]], list[float]]:
    """Return scores that are 1.0 for an empty prediction, after normalisation, of a question without an answer."""
    of_answers = best_of(score)

    def scores(questions: Sequence[Answered]) -> list[float]:
        return [
            of_answers([question])[0] if question.answers else float(not normalize(question.prediction))
            for question in questions
        ]

    return scores


_EXACT_MATCH, _F1 = _as_squad_2(exact_match), _as_squad_2(f1)

register(
    Metric(
        name="exact_match",
        title="exact match",
        kind="proportion",
        scores=_EXACT_MATCH,
        statistics=mean_of(_EXACT_MATCH),
        figure=ratio,
        scores_unanswerable=True,
    )
)
register(
    Metric(
        name="f1",
        title="F1",
        kind="mean",
        scores=_F1,
        statistics=mean_of(_F1),
        figure=ratio,
        scores_unanswerable=True,
    )
)
