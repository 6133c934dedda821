# SPDX-License-Identifier: Apache-2.0
"""Hidden states, logits and losses of a packed micro-batch for any model family, used by training and scoring."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nemo_launcher.data.choice_labels import ChoiceLabels
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.head import over_logits
from nemo_launcher.families.registry import family_of_model
from nemo_launcher.megatron.attention_path import AttentionPath


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each token in fp32, [n] (nats); logits: [n, vocabulary]; labels: [n]."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def token_losses(model: FrozenModel, batch: Batch) -> Tensor:
    """Return the cross-entropy of each answer token of a batch in fp32, [n] (nats)."""
    return over_logits(model, run_model(model, batch), batch.labels, cross_entropy)


def choice_scores(losses: Tensor, label_samples: Tensor, choices: ChoiceLabels, *, normalize: bool) -> Tensor:
    """Return the log-probability of each answer choice, [choices] (nats): the sum over its tokens, or their mean.

    losses: -log p of each label, [n]; label_samples: the choice of each label, [n]. The mean is beta(x, y) of T-Few
    (arXiv 2205.05638, section 3.2).
    """
    owners = label_samples[choices.counted]
    sums = losses.new_zeros(len(choices.records)).index_add(0, owners, -losses[choices.counted])
    return sums / choices.lengths if normalize else sums


def run_model(model: FrozenModel, batch: Batch) -> Tensor:
    """Return what the head reads for the batch's labels, [n, hidden] (before the last stage: the stage's output)."""
    return family_of_model(model).run(model, batch)


def run_row(model: FrozenModel, row: Batch, path: AttentionPath) -> Tensor:
    """Return what the head reads for a row's labels, [n, hidden]; store the row's keys and values in `path`."""
    run = family_of_model(model).run_row
    assert run is not None  # only families with it pack trees of rows
    return run(model, row, path)
