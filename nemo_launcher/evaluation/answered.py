# SPDX-License-Identifier: Apache-2.0
"""Questions with everything that a model has answered, for the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_launcher.evaluation.likelihoods import Likelihoods
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.questions import Question
from nemo_launcher.evaluation.ranking import Ranked


def with_answers(
    questions: Sequence[Question], predictions: Sequence[str], ranked: Ranked, likelihoods: Likelihoods
) -> list[Answered]:
    """Return each question with its prediction, its right answers, and the scores of its choices and right answer.

    ranked, likelihoods: by the index of the question, of those that have them.
    """
    found: list[Answered] = []
    for place, (question, prediction) in enumerate(zip(questions, predictions, strict=True)):
        answered = Answered(prediction=prediction, answers=question.label.answers or [])
        if (of := ranked.get(place)) is not None:
            answered = replace(answered, choice_scores=of.choice_scores, choice_tokens=of.choice_tokens)
        if (found_for := likelihoods.get(place)) is not None:
            answered = replace(answered, nll_sum=found_for.nll_sum, answer_tokens=found_for.answer_tokens)
        found.append(answered)
    return found
