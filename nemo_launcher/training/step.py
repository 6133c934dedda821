"""One optimisation step: forward and backward over the micro-batches of a global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.families import family_of_model


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one pass over a global batch gave.

    loss_sum: cross-entropy summed over the answer tokens, [] (nats); answer_tokens: their number; sample_tokens: tokens
    of the samples as if none were shared; computed_tokens: tokens in the rows.
    """

    loss_sum: Tensor
    answer_tokens: int
    sample_tokens: int
    computed_tokens: int


def forward_backward(
    model: nn.Module, batches: Sequence[Any], *, backward: bool, nemo_compat: bool = False
) -> StepResult:
    """Run all micro-batches; with `backward`, add the gradients of the loss to the adapters' parameters.

    batches: as the model's family packs them.

    The loss is the mean over the answer tokens of the whole global batch, so neither loss nor gradients depend on how
    it is cut. nemo_compat: the mean of the micro-batches' means, as NeMo 1.20 computes it (MegatronGPTModel
    .loss_func); `loss_sum / answer_tokens` is then that mean.
    """
    token_losses = family_of_model(model).token_losses
    answer_tokens = sum(batch.labels.numel() for batch in batches)
    weights = [1.0 / (len(batches) * batch.labels.numel()) if nemo_compat else 1.0 / answer_tokens for batch in batches]
    total = torch.zeros((), device=batches[0].labels.device)
    for batch, weight in zip(batches, weights, strict=True):
        with torch.set_grad_enabled(backward):
            loss = token_losses(model, batch).sum() * weight
        if backward:
            loss.backward()
        total += loss.detach()
    return StepResult(
        loss_sum=total * answer_tokens,
        answer_tokens=answer_tokens,
        sample_tokens=sum(int(batch.lengths.sum()) for batch in batches),
        computed_tokens=sum(batch.num_computed_tokens for batch in batches),
    )
