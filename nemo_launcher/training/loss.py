# SPDX-License-Identifier: Apache-2.0
"""What a training minimises: a loss for each answer token, and their mean over a global batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.forward import token_losses


@dataclass(frozen=True, slots=True)
class TrainingLoss:
    """The mean cross-entropy of the answer tokens of a global batch, however it is cut into micro-batches."""

    nemo_compat: bool = False
    """The mean of the micro-batches' means instead, as NeMo 1.20 computes it (MegatronGPTModel.loss_func)."""

    @classmethod
    def from_settings(cls, model: Ia3Model) -> TrainingLoss:
        """Return the loss that the `model` section of a training asks for."""
        return cls(nemo_compat=model.nemo_compat)

    def of_tokens(self, logits: Tensor, micro: Batch) -> Tensor:
        """Return the loss of each answer token, [n] (nats). logits: [n, vocabulary]."""
        return token_losses(logits, micro)

    def share(self, logits: Tensor, micro: Batch, batch: GlobalBatch, factor: float = 1.0) -> Tensor:
        """Return what a micro-batch adds to the loss of its global batch, times a factor, []."""
        tokens = batch.num_micro_batches * micro.labels.numel() if self.nemo_compat else batch.answer_tokens
        losses = self.of_tokens(logits, micro)
        if micro.label_counts is not None:
            losses = losses * micro.label_counts
        return losses.sum() * (factor / tokens)
