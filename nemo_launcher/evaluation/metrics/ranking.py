# SPDX-License-Identifier: Apache-2.0
"""Rank classification: the prediction is the answer choice with the highest log-probability.

Source: T-Few (arXiv 2205.05638, section 3.2), which ranks by the mean over the tokens of a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from nemo_launcher.evaluation.metrics.labels import label_of
from nemo_launcher.evaluation.metrics.metric import Answered, Metric, mean_of, ratio
from nemo_launcher.evaluation.metrics.registry import register


def best_choice(question: Answered, *, normalize: bool = True) -> str | None:
    """Return the choice with the highest mean log-probability of a token, or the highest sum without `normalize`.

    Of equal choices the first one counts. Returns None for a question without choices.
    """
    scores, tokens = question.choice_scores, question.choice_tokens
    if not scores or not tokens:
        return None
    values = {choice: score / tokens[choice] if normalize else score for choice, score in scores.items()}
    return max(values, key=values.__getitem__)


def _scores(questions: Sequence[Answered], *, normalize: bool) -> list[float]:
    """Return 1.0 for each question whose best choice is a right answer, else 0.0; without choices 0.0."""
    found = []
    for question in questions:
        best = best_choice(question, normalize=normalize)
        found.append(float(best is not None and label_of(best) in map(label_of, question.answers)))
    return found


def _register(name: str, title: str, *, normalize: bool) -> None:
    scores: Callable[[Sequence[Answered]], list[float]] = partial(_scores, normalize=normalize)
    register(
        Metric(
            name=name,
            title=title,
            kind="proportion",
            scores=scores,
            statistics=mean_of(scores),
            figure=ratio,
            needs="choices",
        )
    )


_register("rank_classification", "rank classification", normalize=True)
_register("rank_classification_sum", "rank (sum)", normalize=False)
