"""One optimisation step: forward and backward over the micro-batches of a global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.families import family_of_model
from nemo_launcher.models import parallel


def token_losses(logits: Tensor, batch: Any) -> Tensor:
    """Return the cross-entropy of each answer token in fp32, [n] (nats). logits: [n, vocabulary]."""
    return F.cross_entropy(logits.float(), batch.labels, reduction="none")


def run_model(model: nn.Module, batch: Any) -> Tensor:
    """Return the logits of the batch's labels, [n, vocabulary] (hidden states before the last stage)."""
    return family_of_model(model).run(model, batch)


def forward_backward(
    model: nn.Module, batch: GlobalBatch, *, backward: bool, nemo_compat: bool = False, loss_scale: float = 1.0
) -> Tensor:
    """Return the loss of the whole global batch, [] (nats per answer token), the same on every rank.

    With `backward`, this rank's contribution to its gradients is added to the adapters' parameters (sum over the
    replicas: parallel.sum_over_replicas). The loss is the mean over the answer tokens of the whole global batch, so
    neither loss nor gradients depend on how it is cut. nemo_compat: the mean of the micro-batches' means, as NeMo 1.20
    computes it (MegatronGPTModel.loss_func). loss_scale: factor of the gradients (training.loss_scale).
    """

    def loss_of(logits: Tensor, micro: Any) -> Tensor:
        tokens = batch.num_micro_batches * micro.labels.numel() if nemo_compat else batch.answer_tokens
        return token_losses(logits, micro).sum() * (loss_scale / tokens)

    run = _pipelined if parallel.pipeline_size() > 1 else _in_turn
    total = torch.zeros((), device=next(model.parameters()).device)
    for loss in run(model, batch.micro_batches, loss_of, backward=backward):
        total += loss
    return parallel.sum_over_all(total) / loss_scale


LossOf = Callable[[Tensor, Any], Tensor]


def _in_turn(model: nn.Module, batches: list[Any], loss_of: LossOf, *, backward: bool) -> Iterator[Tensor]:
    for micro in batches:
        with torch.set_grad_enabled(backward):
            loss = loss_of(run_model(model, micro), micro)
        if backward:
            loss.backward()
        yield loss.detach()


def _pipelined(model: nn.Module, batches: list[Any], loss_of: LossOf, *, backward: bool) -> list[Tensor]:
    """Run Megatron-core's schedule over the pipeline stages; only the last stage returns losses."""
    if not batches:
        return []

    def forward_step(data: Iterator[Any], stage: nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
        micro = next(data)
        return run_model(stage, micro), partial(_scaled_loss, micro)

    def _scaled_loss(micro: Any, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
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
