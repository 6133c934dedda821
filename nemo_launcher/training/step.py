"""One optimisation step: forward and backward over the micro-batches of a global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_launcher.data.batching import GlobalBatch, PackedBatch
from nemo_launcher.models import parallel
from nemo_launcher.models.attention import AttentionPlan
from nemo_launcher.models.gpt import FrozenGPT


def token_losses(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Return the cross-entropy of each answer token in fp32, [n] (nats). logits: [n, vocabulary]."""
    return F.cross_entropy(logits.float(), batch.labels, reduction="none")


def run_model(model: FrozenGPT, batch: PackedBatch) -> Tensor:
    """Return the logits of the batch's answer positions, [n, vocabulary] (hidden states before the last stage)."""
    return model(batch.tokens, batch.position_ids, AttentionPlan(batch.groups), batch.logit_positions)


def forward_backward(model: FrozenGPT, batch: GlobalBatch, *, backward: bool, nemo_compat: bool = False) -> Tensor:
    """Return the loss of the whole global batch, [] (nats per answer token), the same on every rank.

    With `backward`, this rank's contribution to its gradients is added to the adapters' parameters (sum over the
    replicas: parallel.sum_over_replicas). The loss is the mean over the answer tokens of the whole global batch, so
    neither loss nor gradients depend on how it is cut. nemo_compat: the mean of the micro-batches' means, as NeMo 1.20
    computes it (MegatronGPTModel.loss_func).
    """

    def loss_of(logits: Tensor, micro: PackedBatch) -> Tensor:
        tokens = batch.num_micro_batches * micro.labels.numel() if nemo_compat else batch.answer_tokens
        return token_losses(logits, micro).sum() / tokens

    run = _pipelined if parallel.pipeline_size() > 1 else _in_turn
    total = torch.zeros((), device=next(model.parameters()).device)
    for loss in run(model, batch.micro_batches, loss_of, backward=backward):
        total += loss
    return parallel.sum_over_all(total)


LossOf = Callable[[Tensor, PackedBatch], Tensor]


def _in_turn(model: FrozenGPT, batches: list[PackedBatch], loss_of: LossOf, *, backward: bool) -> Iterator[Tensor]:
    for micro in batches:
        with torch.set_grad_enabled(backward):
            loss = loss_of(run_model(model, micro), micro)
        if backward:
            loss.backward()
        yield loss.detach()


def _pipelined(model: FrozenGPT, batches: list[PackedBatch], loss_of: LossOf, *, backward: bool) -> list[Tensor]:
    """Run Megatron-core's schedule over the pipeline stages; only the last stage returns losses."""
    if not batches:
        return []

    def forward_step(data: Iterator[PackedBatch], stage: FrozenGPT) -> tuple[Tensor, Callable[[Tensor], Any]]:
        micro = next(data)
        return run_model(stage, micro), partial(_scaled_loss, micro)

    def _scaled_loss(micro: PackedBatch, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = loss_of(logits, micro)
        # the schedule divides by the number of micro-batches
        return loss * len(batches), {"loss": loss.detach()}

    results = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=1,  # the stages tell each other the real shapes (variable_seq_lengths)
        micro_batch_size=1,
        forward_only=not backward,
    )
    return [result["loss"] for result in results]
