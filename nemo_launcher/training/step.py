# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: forward and backward over the micro-batches of a global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.row_tree import RowForest
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.forward import run_model
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.packed_weight import any_parameter
from nemo_launcher.megatron.seeded_dropout import dropout_seed, seed_from
from nemo_launcher.training.depth_first import DepthFirst, LossOf
from nemo_launcher.training.fitting import Fitting, fits
from nemo_launcher.training.gradient_sums import GradientSums
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.workers import run_concurrently

_MEAN = TrainingLoss()


def step_seed(seed: int, step: int, *, sequence_parallel: bool) -> int:
    """Return this rank's dropout seed for a step, so that a resumed run draws the same masks.

    Tensor-parallel ranks process the same tokens with the same masks, unless sequence_parallel gives each its own
    tokens.
    """
    number = parallel.data_rank() * parallel.pipeline_size() + parallel.pipeline_rank()
    if sequence_parallel:
        number = number * parallel.tensor_size() + parallel.tensor_rank()
    return seed_from(seed, step, number)


def forward_backward(
    model: FrozenModel,
    batch: GlobalBatch,
    *,
    backward: bool,
    loss: TrainingLoss = _MEAN,
    loss_scale: float = 1.0,
    seed: int = 0,
    fitting: Fitting | None = None,
) -> Tensor:
    """Return the loss of the global batch, [] (nats per answer token), the same on every rank.

    With `backward`, the gradients of this rank's samples are added to the adapters' parameters; sum them over the
    replicas with parallel.sum_over_replicas. loss: what is minimised, by default the mean over the answer tokens of the
    whole global batch, so that neither loss nor gradients depend on how the batch is cut. loss_scale: factor of the
    gradients (training.loss_scale). seed: for the adapters' dropout. fitting: cuts micro-batches further that do not
    fit into the memory of a GPU; not in a pipeline.
    """

    def loss_of(hidden: Tensor, micro: Batch) -> Tensor:
        return loss.share(model, hidden, micro, batch, loss_scale)

    if parallel.pipeline_size() > 1:
        losses = _pipelined(model, batch.micro_batches, loss_of, backward=backward, seed=seed)
    else:
        run = partial(run_side_by_side, model, loss_of=loss_of, backward=backward, seed=seed)
        losses = run(batch) if fitting is None else fitting.run(run, batch)
    total = torch.zeros((), device=any_parameter(model).device)
    for part in losses:
        total += part
    return parallel.sum_over_all(total) / loss_scale


def run_side_by_side(
    model: FrozenModel, batch: GlobalBatch, loss_of: LossOf, *, backward: bool, seed: int
) -> list[Tensor]:
    """Return the loss of each worker's micro-batches; add their gradients to the parameters if `backward`.

    Raises DoesNotFitError, with no gradients added, if the memory of the GPU runs out.
    """
    batches = batch.micro_batches
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def work(own: list[int]) -> tuple[Tensor, GradientSums]:
        total, sums = torch.zeros((), device=any_parameter(model).device), GradientSums(parameters)
        for index in own:
            with fits(index):
                total += _run(model, batches[index], loss_of, sums if backward else None, (seed, index))
        return total, sums

    losses = []
    for loss, sums in run_concurrently(work, batch.costs, batch.workers):
        losses.append(loss)
        for parameter, gradient in zip(parameters, sums.totals, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return losses


def _run(model: FrozenModel, micro: Batch, loss_of: LossOf, sums: GradientSums | None, seed: tuple[int, ...]) -> Tensor:
    """Return the loss of a micro-batch, without a graph; add its gradients to `sums`, if given."""
    if isinstance(micro, RowForest):
        return DepthFirst(model, loss_of, sums, seed).run(micro)
    with torch.set_grad_enabled(sums is not None), dropout_seed(seed):
        loss = loss_of(run_model(model, micro), micro)
        if sums is not None:
            sums.add(torch.autograd.grad(loss, sums.inputs, allow_unused=True))
    return loss.detach()


def _pipelined(model: FrozenModel, batches: list[Batch], loss_of: LossOf, *, backward: bool, seed: int) -> list[Tensor]:
    """Run Megatron-core's pipeline schedule; only the last stage returns losses."""
    if not batches:
        return []

    def forward_step(
        data: Iterator[tuple[int, Batch]], stage: FrozenModel
    ) -> tuple[Tensor, Callable[[Tensor], object]]:
        index, micro = next(data)
        with dropout_seed((seed, index)):
            return run_model(stage, micro), partial(_scaled_loss, micro)

    def _scaled_loss(micro: Batch, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = loss_of(hidden, micro)
        # the schedule divides by the number of micro-batches
        return loss * len(batches), {"loss": loss.detach()}

    results = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(enumerate(batches)),
        model=[model],
        num_microbatches=len(batches),
        seq_length=1,  # the stages exchange the actual shapes (variable_seq_lengths)
        micro_batch_size=1,
        forward_only=not backward,
    )
    return [result["loss"] for result in results]
