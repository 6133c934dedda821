# SPDX-License-Identifier: Apache-2.0
"""What a training minimises: a loss for each answer token, and their mean over a global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_launcher.config.sections.learning import ChoiceLoss, Ia3Model
from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.choice_labels import ChoiceLabels
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.forward import choice_scores, cross_entropy
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.head import over_logits
from nemo_launcher.training.choice_loss import length_normalised, unlikelihood


@dataclass(frozen=True, slots=True)
class TrainingLoss:
    """The mean cross-entropy of the answer tokens of a global batch, however it is cut into micro-batches.

    With answer choices it is that of the right ones, and losses over all choices may be added.
    """

    nemo_compat: bool = False
    """The mean of the micro-batches' means instead, as NeMo 1.20 computes it (MegatronGPTModel.loss_func)."""
    unlikelihood: bool = False
    """Whether to add T-Few's unlikelihood loss: a mean over the tokens of all wrong choices of the global batch."""
    length_norm: bool = False
    """Whether to add T-Few's length-normalised loss: a mean over the records of the global batch."""

    @classmethod
    def from_settings(cls, model: Ia3Model) -> TrainingLoss:
        """Return the loss that the `model` section of a training asks for."""
        loss = model.loss or ChoiceLoss()
        return cls(model.nemo_compat, unlikelihood=loss.unlikelihood, length_norm=loss.length_norm)

    def of_tokens(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each answer token, [n] (nats), from its own logits, [n, vocabulary]; labels: [n]."""
        return cross_entropy(logits, labels)

    def share(
        self, model: FrozenModel, hidden: Tensor, micro: Batch, batch: GlobalBatch, factor: float = 1.0
    ) -> Tensor:
        """Return what a micro-batch adds to the loss of its global batch, times a factor, [].

        hidden: what the model's head reads for the answer tokens (families.forward.run_model), [n, hidden].
        """
        if micro.choices is not None:
            return factor * self._of_choices(model, hidden, micro, micro.choices, batch)
        tokens = batch.num_micro_batches * micro.labels.numel() if self.nemo_compat else batch.answer_tokens
        losses = over_logits(model, hidden, micro.labels, self.of_tokens)
        if micro.label_counts is not None:
            losses = losses * micro.label_counts
        return losses.sum() * (factor / tokens)

    def _of_choices(
        self, model: FrozenModel, hidden: Tensor, micro: Batch, choices: ChoiceLabels, batch: GlobalBatch
    ) -> Tensor:
        """Return what a micro-batch with answer choices adds to the loss of its global batch, []."""
        values = self._with_unlikelihood if self.unlikelihood else self.of_tokens
        losses, *unlikely = over_logits(model, hidden, micro.labels, values).view(micro.labels.numel(), -1).unbind(1)
        total = losses[choices.right].sum() / batch.answer_tokens
        for each in unlikely:
            total = total + each[choices.wrong].sum() / batch.wrong_tokens
        if self.length_norm:
            scores = choice_scores(losses, micro.label_samples, choices, normalize=True)
            total = total + length_normalised(scores, choices).sum() / batch.num_samples
        return total

    def _with_unlikelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each token, and its unlikelihood loss, [n, 2]."""
        losses = self.of_tokens(logits, labels)
        return torch.stack((losses, unlikelihood(logits, labels, losses)), dim=1)
