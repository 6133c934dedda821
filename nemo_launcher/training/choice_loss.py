# SPDX-License-Identifier: Apache-2.0
"""T-Few's losses over the answer choices of a record: unlikelihood and the length-normalised loss.

Source: Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
(arXiv 2205.05638), section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nemo_launcher.data.choice_labels import ChoiceLabels


def unlikelihood(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    """Return -log(1 - p) of each label's probability p, [n] (nats); equation 2 of the paper, before its mean.

    logits: [n, vocabulary]; losses: -log p of each label in fp32 or more, [n]. For p above 1/2 it is the difference
    between the log-sum-exp of all logits and that of the other tokens' logits, which is finite where p rounds to 1.
    """
    found = -torch.log1p(-torch.exp(-losses.clamp(min=math.log(2))))
    is_likely = losses < math.log(2)
    if losses.device.type != "cpu":  # a GPU would wait for the number of likely ones
        return torch.where(is_likely, _exactly(logits, labels, losses), found)
    likely = is_likely.nonzero()[:, 0]
    if not likely.numel():
        return found
    return found.index_copy(0, likely, _exactly(logits[likely], labels[likely], losses[likely]))


def _exactly(logits: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
    rows, tokens = logits.to(losses.dtype), labels[:, None]
    of_all = losses + rows.gather(1, tokens)[:, 0]
    return of_all - rows.scatter(1, tokens, float("-inf")).logsumexp(1)


def length_normalised(scores: Tensor, choices: ChoiceLabels) -> Tensor:
    """Return -log softmax of the right choice's score among those of its record, [records] (nats); equation 4.

    scores: the mean log-probability of each choice's tokens, [choices] (families.forward.choice_scores).
    """
    records = choices.records
    # Subtracting the largest score keeps the sum within the range of numbers.
    largest = scores.new_full((len(choices.answers),), float("-inf"))
    largest = largest.index_reduce(0, records, scores.detach(), "amax")
    powers = torch.exp(scores - largest[records])
    sums = torch.zeros_like(largest).index_add(0, records, powers)
    return largest + sums.log() - scores[choices.answers]
