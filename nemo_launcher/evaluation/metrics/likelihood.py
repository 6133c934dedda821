# SPDX-License-Identifier: Apache-2.0
"""A metric of likelihood: the perplexity of the right answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemo_launcher.evaluation.metrics.metric import Answered, Metric
from nemo_launcher.evaluation.metrics.registry import register

if TYPE_CHECKING:
    from nemo_launcher.evaluation.metrics.metric import FloatArray


def negative_log_likelihoods(questions: Sequence[Answered]) -> FloatArray:
    """Return the sum over the tokens of each right answer, in nats, and their number: [questions, 2]."""
    import numpy as np

    rows = [[question.nll_sum, question.answer_tokens] for question in questions]
    return np.array(rows, dtype=np.float64)


def perplexity(sums: FloatArray) -> FloatArray:
    """Return exp of the mean negative log-likelihood of a token; [..., 2] -> [...]."""
    import numpy as np

    with np.errstate(over="ignore"):  # a loss above 709 nats has no finite perplexity
        values: FloatArray = np.exp(sums[..., 0] / sums[..., 1])
    return values


def of_questions(questions: Sequence[Answered]) -> list[float]:
    """Return the perplexity of each answer alone."""
    values: list[float] = perplexity(negative_log_likelihoods(questions)).tolist()
    return values


register(
    Metric(
        name="perplexity",
        title="perplexity",
        kind="corpus",
        statistics=negative_log_likelihoods,
        figure=perplexity,
        scores=of_questions,
        is_share=False,
        higher_is_better=False,
        needs="likelihood",
    )
)
