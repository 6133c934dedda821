# SPDX-License-Identifier: Apache-2.0
"""What a metric is. Every metric is a function of sums over questions, so that one bootstrap serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

Kind = Literal["proportion", "mean", "corpus"]
"""proportion: each question counts 0 or 1; mean: each has a score; corpus: only all questions together have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question with its prediction and its right answers."""

    prediction: str
    """The generated text, without the prompt."""
    answers: Sequence[str]
    """All right answers; empty for a question that has none."""
    nll_sum: float | None = None
    """Negative log-likelihood of the first right answer, in nats; None unless a metric needs it."""
    answer_tokens: int | None = None
    """The number of tokens that nll_sum covers."""
    choice_scores: Mapping[str, float] | None = None
    """The log-likelihood of each answer choice in nats, by its text; None unless a metric needs it."""
    choice_tokens: Mapping[str, int] | None = None
    """The number of tokens that the log-likelihood of each choice covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of the answers to questions."""

    name: str
    """The name in evaluation.metrics and in files."""
    title: str
    """The column heading in the final table."""
    kind: Kind
    """What a single question contributes."""
    statistics: Callable[[Sequence[Answered]], FloatArray]
    """Returns the statistics of each question, [questions, k]."""
    figure: Callable[[FloatArray], FloatArray]
    """Returns the metric of sums of statistics over questions, [..., k] -> [...]."""
    scores: Callable[[Sequence[Answered]], list[float]] | None = None
    """Returns the score of each question alone; None if a single question has none."""
    is_share: bool = True
    """Whether values lie between 0 and 1 and are shown as percentages."""
    higher_is_better: bool = True
    """Whether a higher value is better."""
    scores_unanswerable: bool = False
    """Whether it scores questions without a right answer; they are otherwise left out."""
    needs: Literal["text", "likelihood", "choices"] = "text"
    """What it scores: the prediction, the likelihood of the right answer, or that of all answer choices."""
    library: str | None = None
    """The library that it imports, in the extra `metrics`; None if it needs none."""


def mean_of(scores: Callable[[Sequence[Answered]], list[float]]) -> Callable[[Sequence[Answered]], FloatArray]:
    """Return the statistics of a metric that is the mean of its scores: [score, 1] for each question."""

    def statistics(questions: Sequence[Answered]) -> FloatArray:
        import numpy as np

        values = np.array(scores(questions), dtype=np.float64)
        return np.stack([values, np.ones_like(values)], axis=-1)

    return statistics


def ratio(sums: FloatArray) -> FloatArray:
    """Return the quotient of the first two sums, [..., 2] -> [...]."""
    quotient: FloatArray = sums[..., 0] / sums[..., 1]
    return quotient


def best_of(score: Callable[[str, str], float]) -> Callable[[Sequence[Answered]], list[float]]:
    """Return the scores of questions by their best right answer; score: of (prediction, right answer), from 0 to 1."""

    def scores(questions: Sequence[Answered]) -> list[float]:
        return [max(score(question.prediction, answer) for answer in question.answers) for question in questions]

    return scores


def text_metric(name: str, title: str, score: Callable[[str, str], float], **more: object) -> Metric:
    """Return the metric that is the mean over questions of a score of (prediction, right answer), from 0 to 1.

    The best of several right answers counts. more: further fields of Metric.
    """
    scores = best_of(score)
    fields: dict[str, object] = {"kind": "mean", "scores": scores, "statistics": mean_of(scores), "figure": ratio}
    return Metric(name=name, title=title, **(fields | more))  # type: ignore[arg-type]
